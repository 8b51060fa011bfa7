"""Decoders of Hugging Face transformers, run layer by layer with their own masks, positions, scalings and caches.

Transformers' own modules do the work; what stands between them in its ``forward`` is done here: embedding scales,
rotary angles for each type of layer, sliding windows, caps and scales of logits. Whether that is done right is checked
against the model's own ``forward`` whenever one is built (`zippkit_towers.hf_causal_lm.parity`). Parameters carry the
names of the model's checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zippkit.batch.batch import TowerBatch
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.model.tower import Tower
from zippkit.model.weights import load_into, read_tensors
from zippkit_towers.hf_causal_lm.config import HfCausalLmConfig
from zippkit_towers.hf_causal_lm.parts import find_parts, refuse_sparse, windows_of
from zippkit_towers.hf_causal_lm.routing import balance_of, recorded

TOKEN_BY_TOKEN = "zippkit_token_by_token"
"""How experts are run where bits are compared, by the name under which transformers finds it."""
_RANDOM = ("dropout", "pdrop", "jitter")
"""In the names of settings that make training random; a tower gives the same for the same inputs."""


@dataclass
class Slots:
    """Preallocated keys and values, in the shape of transformers' cache: layers call ``update``."""

    keys: list[Tensor]
    """For each layer (B, H_kv, max_len, K)."""
    values: list[Tensor]
    positions: Tensor | None = None
    """(B, T) slots of the new tokens."""
    n_slots: int = 0
    """How many slots are looked at."""

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put the new tokens (B, H_kv, T, K) into their slots; the first ``n_slots`` slots."""
        at = cast("Tensor", self.positions)
        rows = torch.arange(len(at), device=at.device)[:, None]
        found = []
        for stores, new in ((self.keys, key), (self.values, value)):
            store = stores[layer_idx]
            if store.shape[1] != new.shape[1] or store.shape[3] != new.shape[3]:
                # This layer's heads are not those of the config; nothing has been written yet.
                store = stores[layer_idx] = new.new_zeros(len(store), new.shape[1], store.shape[2], new.shape[3])
            store.transpose(1, 2)[rows, at] = new.transpose(1, 2).to(store)
            found.append(store[:, :, : self.n_slots])
        return found[0], found[1]


@dataclass(frozen=True)
class Context:
    """What every layer of one forward needs besides the states."""

    masks: dict[int | None, Tensor | None]
    """By window; (B, 1, T, S), or None for plain causal."""
    angles: dict[str, Any]
    """By type of layer."""
    positions: Tensor
    cache: Slots | None
    routed: list[Tensor] | None = None
    """The logits (B * T, n_experts) of each router so far, where they are asked for."""


class HfCausalLm(Tower):
    """Any causal language model of transformers whose layers can be run one by one, exactly."""

    Config = HfCausalLmConfig
    made_by_weights = True
    config: HfCausalLmConfig

    def __init__(self, config: HfCausalLmConfig) -> None:
        super().__init__(config)
        self.folder: Path | None = None
        """The Hugging Face folder that the weights are of; whose config.json the tower is compared by (`check`)."""
        whole = whole_model(config)
        self.hf: Any = whole.config
        self.parts = find_parts(whole, config.n_layers)
        self._take(whole)
        self.eager = self.hf._attn_implementation == "eager"
        self.windows = windows_of(self.hf, config.n_layers)
        refuse_sparse(self.hf)
        self._balance = balance_of(whole)
        if self._balance is not None:
            self.router_weight = float(config.model.get("router_aux_loss_coef") or 0.0)

    def _take(self, whole: Any) -> None:
        """Make the modules of a whole model this tower's own; not a head that is nothing but the embedding's weight."""
        head = whole.get_submodule(self.parts.head)
        tied = getattr(head, "weight", None) is whole.get_submodule(self.parts.embedding).weight
        self.tied = tied and isinstance(head, nn.Linear) and head.bias is None
        for name, child in whole.named_children():
            if not (self.tied and name == self.parts.head):
                self.add_module(name, child)

    def part(self, name: str) -> Any:
        """A module by the field of `Parts` that names it."""
        return self.get_submodule(getattr(self.parts, name))

    def check(self) -> None:
        from zippkit_towers.hf_causal_lm.parity import check_parity

        check_parity(self)

    def apart(self) -> str:
        """Tokens of a whole batch that take one expert share a product, so a token's last bits depend on the others."""
        experts: list[Any] = [module for module in self.modules() if hasattr(module, "_is_expert_parallel")]
        if not experts:
            many = max(map(self._size, ("num_local_experts", "num_experts", "n_routed_experts")))
            return "experts that multiply all rows at once, whose last bits depend on each other" if many > 1 else ""
        interface = import_module("transformers.integrations.moe").ALL_EXPERTS_FUNCTIONS
        interface.register(TOKEN_BY_TOKEN, _token_by_token)
        for module in experts:
            module.config._experts_implementation = TOKEN_BY_TOKEN
        return "its experts token by token"

    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Any = None) -> tuple[Tensor, Context]:
        hidden = self.part("embedding")(inputs.tokens) * self._scale("embedding_multiplier")
        angles: dict[str, Any] = {}
        if self.parts.rotary:
            rotary = self.part("rotary")
            for kind in set(self._kinds()):
                angles[kind] = rotary(hidden, inputs.places, *((kind,) if kind else ()))
        if cache is not None:
            cache.positions, cache.n_slots = inputs.positions, cast("Tensor", mask).shape[-1]
        masks = {window: self._mask(mask, window, inputs, hidden) for window in set(self.windows)}
        hidden = self.placed(hidden, inputs)
        if self.parts.embedding_norm:
            hidden = self.part("embedding_norm")(hidden)
        trained = self.router_weight > 0 and any(p.requires_grad for p in self.parameters())
        routed: list[Tensor] | None = [] if trained and cache is None else None
        return hidden, Context(masks, angles, inputs.places, cache, routed)

    def _scale(self, name: str) -> float:
        return float(getattr(self.hf, name, None) or 1.0)

    def _kinds(self) -> list[str]:
        """For each layer, what its rotary angles are asked for by."""
        kinds = getattr(self.hf, "layer_types", None) if self.parts.angles_by_kind else None
        return list(kinds) if kinds else [""] * self.config.n_layers

    def _mask(self, mask: Tensor | None, window: int | None, inputs: TowerBatch, hidden: Tensor) -> Tensor | None:
        """(B, 1, T, S) of one kind of layer: bool, or what is added to the scores where attention is eager."""
        n = inputs.tokens.shape[1]
        if mask is None and (self.eager or (window is not None and window < n)):
            mask = torch.ones(n, n, dtype=torch.bool, device=hidden.device).tril().expand(len(hidden), n, n)
        if mask is None:
            return None
        if window is not None and window < mask.shape[-1]:
            slots = torch.arange(mask.shape[-1], device=hidden.device)
            mask = mask & (inputs.positions[:, :, None] - slots < window)
        if self.eager:
            lowest = torch.finfo(hidden.dtype).min
            return torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, lowest)[:, None]
        return mask[:, None]

    def placed(self, states: Tensor, inputs: TowerBatch) -> Tensor:
        if not self.parts.positions:
            return states
        learned = self.part("positions")
        # OPT and its kin leave the first rows of the table to padding; and padding counts on, past the last position.
        at = inputs.places + getattr(learned, "offset", 0)
        moved: Tensor = states + F.embedding(at.clamp(max=learned.num_embeddings - 1), learned.weight)
        return moved

    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        known: dict[str, Any] = {
            "attention_mask": context.masks[self.windows[index]],
            "position_ids": context.positions,
            "use_cache": context.cache is not None,
        }
        if self.parts.rotary:
            known["position_embeddings"] = context.angles[self._kinds()[index]]
        known["alibi"] = None
        given = {name: value for name, value in known.items() if name in self.parts.takes}
        if context.cache is not None:
            given[self.parts.cache] = context.cache
        layer = self.part("layers")[index]
        with recorded(self._balance, layer, context.routed):
            out = layer(hidden, **given)
        states: Tensor = out[0] if isinstance(out, tuple) else out
        return states

    def router_loss(self, inputs: TowerBatch, context: Context) -> Tensor | None:
        if not context.routed or self._balance is None:
            return None
        return self._balance.loss(tuple(context.routed), (inputs.order >= 0).to(context.routed[0]))

    def head(self, hidden: Tensor) -> Tensor:
        if self.parts.norm:
            hidden = self.part("norm")(hidden)
        logits: Tensor = F.linear(hidden, self.part("embedding").weight) if self.tied else self.part("head")(hidden)
        logits = logits * self._scale("logit_scale") / self._scale("logits_scaling")
        cap = getattr(self.hf, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def new_cache(self, batch_size: int, max_len: int) -> Slots:
        like = self.part("embedding").weight
        slots = [like.new_zeros(batch_size, n, max_len, width) for n, width in self._cached() for _ in self.windows]
        return Slots(slots[: self.config.n_layers], slots[self.config.n_layers :])

    def _cached(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Heads and width of keys, and of values; where a layer has others, its slots are made anew when it writes."""
        n_heads = self._size("num_attention_heads") or 1
        if self._size("kv_lora_rank"):
            # Multi-head latent attention (arXiv 2405.04434).
            key_width = self._size("qk_nope_head_dim") + self._size("qk_rope_head_dim")
            return (n_heads, key_width), (n_heads, self._size("v_head_dim"))
        shape = (
            self._size("num_key_value_heads") or n_heads,
            self._size("head_dim") or self.config.dim // n_heads,
        )
        return shape, shape

    def _size(self, name: str) -> int:
        """A whole number among transformers' settings; 0 where there is none."""
        try:
            found = getattr(self.hf, name, None)
        except Exception:
            # Some configs have one for each layer, and refuse to tell one for all.
            return 0
        return found if type(found) is int else 0

    def reorder_cache(self, cache: Slots, rows: Tensor) -> Slots:
        return Slots([keys[rows] for keys in cache.keys], [values[rows] for values in cache.values])

    @classmethod
    def hugging_face(cls, config: HfCausalLmConfig) -> dict[str, Any]:
        names = import_module("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        told = {"architectures": [names[config.model_type]], **config.model}
        frame = config.frame
        return told if frame is None else {"bos_token_id": frame.begin, "eos_token_id": frame.end} | told

    def load_weights(self, path: Path) -> None:
        """Fill in the values of a Hugging Face folder (through transformers, so that older names fit), or zippkit's.

        A tower that was built without values (on the meta device, before anything is frozen or adapted) takes over
        the modules that were read, so that no weight is held twice; any other one keeps every module and parameter.

        Raises:
            CheckpointError: weights that do not fit, or no safetensors.
        """
        empty = any(parameter.is_meta for parameter in self.parameters())
        folder = (path / "config.json").is_file()
        if folder:
            self.folder = path
        if empty:
            self._take(_from_folder(path, self.config, self.dtype) if folder else whole_model(self.config))
        if folder and not empty:
            found = _from_folder(path, self.config, self.dtype).state_dict()
            load_into(self, {name: found[name] for name in self.state_dict() if name in found}, str(path))
        elif not folder:
            load_into(self, read_tensors(path), str(path))


def _token_by_token(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """What experts make of (N, D) tokens, each alone, of the (N, k) experts that it chose and their weights."""
    run = type(experts).forward.__wrapped__
    parts = (slice(i, i + 1) for i in range(len(hidden)))
    return torch.cat([run(experts, hidden[part], chosen[part], weights[part]) for part in parts])


def _from_folder(path: Path, config: HfCausalLmConfig, dtype: torch.dtype) -> Any:
    transformers = _transformers()
    try:
        model, told = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            config=hf_config(config),
            attn_implementation=_attention(config),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
        )
    except Exception as error:
        # Transformers raises whatever its readers raise.
        read_tensors(path)
        raise CheckpointError(f"{path}: transformers cannot load it: {type(error).__name__}: {error}") from error
    wrong = {key: sorted(map(str, told.get(key, ()))) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    problems = [f"{key.replace('_', ' ')}: {', '.join(names[:5])}" for key, names in wrong.items() if names]
    if problems:
        raise CheckpointError(f"{path}: does not fit its own config.json: {'; '.join(problems)}")
    return model


def _transformers() -> Any:
    try:
        return import_module("transformers")
    except ImportError as error:
        raise ZippkitError("kind `hf_causal_lm` needs transformers: pip install 'zippkit[hf]'") from error


def _attention(config: HfCausalLmConfig) -> str | None:
    """Scores that are capped need attention that is written out; None is transformers' own choice."""
    return "eager" if config.model.get("attn_logit_softcapping") else None


def hf_config(config: HfCausalLmConfig) -> Any:
    """Transformers' config, without anything random.

    Raises:
        ZippkitError: transformers does not take the settings.
    """
    with _told_as_one(config):
        hf = _for_model(config)
    for key, value in vars(hf).items():
        if (value is None or type(value) in (int, float)) and any(part in key for part in _RANDOM):
            setattr(hf, key, 0.0)
    return hf


def whole_model(config: HfCausalLmConfig, hf: Any = None) -> Any:
    """Transformers' own model, randomly initialised.

    Args:
        config: of the tower.
        hf: transformers' config, if it is another one than `hf_config` makes of ``config``.

    Raises:
        ZippkitError: transformers cannot build it.
    """
    auto = _transformers().AutoModelForCausalLM
    with _told_as_one(config):
        return auto.from_config(
            hf_config(config) if hf is None else hf,
            dtype=torch.get_default_dtype(),
            attn_implementation=_attention(config),
            trust_remote_code=False,
        )


@contextmanager
def _told_as_one(config: HfCausalLmConfig) -> Iterator[None]:
    """Whatever transformers raises about a config, as one sentence: it checks few settings, and each in its own way."""
    try:
        yield
    except ZippkitError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        # A value that is not known, as of `hidden_act`, comes without its name.
        unknown = error.args[:1] if isinstance(error, KeyError) else ()
        named = "".join(f"; {key} is {value!r}" for key, value in config.model.items() if value in unknown)
        raise ZippkitError(
            f"transformers cannot build a {config.model_type!r} model of these settings ({why}{named}); correct them "
            "in its config.json, or in `model`"
        ) from error


def own_config(config: HfCausalLmConfig, folder: Path | None) -> Any:
    """Transformers' config as it stands in the folder of the weights, untouched; without a folder, in ``config``."""
    # With a `model` of its own, a spec takes only the weights of a folder.
    if folder is not None and HfCausalLmConfig.from_folder(folder).model == config.model:
        read = _transformers().AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return read.get_text_config()
    return _for_model(config)


def _for_model(config: HfCausalLmConfig) -> Any:
    # A copy, because transformers fills in what is left out inside the nested settings that it is given.
    return _transformers().AutoConfig.for_model(**copy.deepcopy(config.model))
