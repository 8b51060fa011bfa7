"""Encoders of families that nobody wrote down: built by transformers, taken apart by watching them, checked by parity.

Segments are run beside each other, each as its own row of the model's forward, so none sees another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.errors import ZippkitError
from zippkit.model.tower import Tower
from zippkit.spec.kinds import Frame
from zippkit_towers.hf_encoder.calls import (
    Anatomy,
    Call,
    UnfitError,
    dissect,
    drop_unused,
    record,
    run_layer,
    shallow,
)
from zippkit_towers.hf_encoder.config import HfEncoderConfig
from zippkit_towers.hf_encoder.others import one_line

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference from the model's own forward, relative to the largest state, by the dtype of both."""
MAIN_INPUT = {"text": "input_ids", "image": "pixel_values", "sound": "input_values"}


@dataclass(frozen=True)
class _Group:
    """Segments that are run together."""

    rows: Tensor
    """(n, L) which of the batch's B * T states each of theirs is."""
    real: Tensor | None
    """(n, L) bool; None: nothing is padding."""
    calls: list[Call]


@dataclass(frozen=True)
class Context:
    """What the layers need besides the states."""

    groups: tuple[_Group, ...]
    places: Tensor
    """(B, T) which of the groups' states, one after the other, each of the batch's is; the last one is zero."""


class Guessed:
    """An encoder's shell, and how its layers are called. The modules and tensors are the tower's own."""

    def __init__(self, config: HfEncoderConfig) -> None:
        try:
            whole = whole_model(config, quiet=True)
            encoder = encoder_of(whole)
            fed = getattr(encoder, "main_input_name", whole.main_input_name)
            if fed != MAIN_INPUT[config.feed_kind]:
                raise UnfitError(f"it is fed {fed!r}, and nothing here makes that")
            if _is_decoder(encoder, config):
                raise UnfitError("it reads from left to right; kind `hf_causal_lm` is for decoders")
            self.anatomy = _dissected(encoder, config)
            self.padded = _takes_padding(encoder, config)
        except UnfitError as error:
            raise ZippkitError(f"kind `hf_encoder` does not run a {config.model_type!r} model: {error}") from error
        self.children = {name: child for name, child in encoder.named_children() if _registered(child)}
        self.parameters = dict(encoder.named_parameters(recurse=False))
        self.buffers = dict(encoder.named_buffers(recurse=False))
        self._shell = shallow(encoder, {n: None if n in self.children else m for n, m in encoder._modules.items()})

    def adopt(self, tower: nn.Module) -> None:
        """Make the encoder's parts the tower's own."""
        for name, child in self.children.items():
            tower.add_module(name, child)
        for name, parameter in self.parameters.items():
            tower.register_parameter(name, parameter)
        for name, buffer in self.buffers.items():
            tower.register_buffer(name, buffer, persistent=name not in self._shell._non_persistent_buffers_set)
        # From here on they are the tower's alone, so that a copy of it, or a move elsewhere, is one of them too.
        self.children, self.parameters, self.buffers = {}, {}, {}

    def encoder(self, tower: nn.Module) -> Any:
        """The encoder, made of the tower's parts as they are now."""
        whole = shallow(self._shell, {n: tower._modules.get(n, m) for n, m in self._shell._modules.items()})
        whole.__dict__["_parameters"] = {n: tower._parameters.get(n) for n in self._shell._parameters}
        whole.__dict__["_buffers"] = {n: tower._buffers.get(n) for n in self._shell._buffers}
        whole.__dict__["training"] = False
        return whole

    def start(self, tower: Tower, inputs: TowerBatch) -> tuple[Tensor, Context]:
        """States (B, T, D) at depth 0, and what the layers need."""
        encoder, config = self.encoder(tower), config_of(tower)
        entry, column = _entries(inputs)
        rows, lengths = _rows(inputs, entry, column)
        begun: list[Tensor] = []
        groups: list[_Group] = []
        firsts = torch.zeros_like(lengths)
        n_before = 0
        for which, n in self._together(config, inputs, lengths, rows.shape[1]):
            values, real = _given(config, inputs, rows, lengths, which, n, next(tower.parameters()))
            try:
                states, calls = record(encoder, self.anatomy, values)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                what = f"a segment of {rows[which].shape[1]} states"
                raise ZippkitError(f"a {config.model_type!r} model cannot run {what}: {one_line(error)}") from error
            if not states.is_meta and states.shape[1] != n:
                raise ZippkitError(f"a {config.model_type!r} model makes {states.shape[1]} states, expected {n}")
            width = states.shape[1]
            firsts[which] = n_before + width * torch.arange(len(which), device=firsts.device)
            n_before += len(which) * width
            groups.append(_Group(rows[which][:, :width], real, calls))
            begun.append(states.flatten(0, 1))
        places = torch.where(inputs.order >= 0, firsts[entry] + column, n_before)
        hidden = torch.cat([*begun, begun[0].new_zeros(1, begun[0].shape[1])])[places]
        return hidden, Context(tuple(groups), places)

    def _together(
        self, config: HfEncoderConfig, inputs: TowerBatch, lengths: Tensor, longest: int
    ) -> Iterator[tuple[Tensor, int]]:
        """Which segments are run together, and how many states the longest of them has."""
        all_of_them = torch.arange(len(lengths), device=lengths.device)
        if lengths.is_meta or (self.padded and config.feed_kind == "text"):
            yield all_of_them, longest
            return
        # What is fed decides; different waveforms may make as many states.
        sizes = lengths if inputs.features is None else inputs.features.lengths
        order = sorted(range(len(lengths)), key=sizes.tolist().__getitem__)
        for _, same in groupby(order, key=sizes.tolist().__getitem__):
            which = torch.tensor(list(same), device=lengths.device)
            yield which, int(lengths[which].max())

    def layer(self, tower: Tower, index: int, hidden: Tensor, context: Context) -> Tensor:
        encoder, form = self.encoder(tower), self.anatomy.forms[index]
        flat, made = hidden.flatten(0, 1), []
        for group in context.groups:
            states = flat[group.rows]
            if group.real is not None:
                states = states * group.real[:, :, None]
            states = run_layer(encoder, form, group.calls[index], states)
            if index + 1 == len(self.anatomy.forms):
                for name in self.anatomy.after:
                    states = encoder.get_submodule(name)(states)
            made.append(states.flatten(0, 1))
        found: Tensor = torch.cat([*made, made[0].new_zeros(1, made[0].shape[1])])[context.places]
        return found


def config_of(tower: Tower) -> HfEncoderConfig:
    return cast("HfEncoderConfig", tower.config)


def _registered(child: nn.Module) -> bool:
    return any(True for _ in child.parameters()) or any(True for _ in child.buffers())


def whole_model(config: HfEncoderConfig, quiet: bool) -> Any:
    """Transformers' own model of a config; ``quiet``: without anything random.

    Raises:
        ZippkitError: transformers is not installed, or does not take the config.
    """
    try:
        transformers: Any = import_module("transformers")
    except ImportError as error:
        raise ZippkitError("kind `hf_encoder` needs transformers: pip install 'zippkit[hf]'") from error
    try:
        settings = transformers.AutoConfig.for_model(**config.model)
        if quiet:
            _silence(settings)
        model = transformers.AutoModel.from_config(settings, dtype=torch.get_default_dtype(), trust_remote_code=False)
    except Exception as error:
        # transformers checks its settings in its own ways.
        what = f"transformers builds no {config.model_type!r} model of this config"
        raise ZippkitError(f"{what}: {one_line(error)}") from error
    if quiet:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return model.eval()


def _silence(settings: Any) -> None:
    """Set whatever is random in training to nothing; what this misses is found by the parity check."""
    for key, value in list(vars(settings).items()):
        if key == "use_cache":
            setattr(settings, key, False)
        elif type(value) is float and any(word in key for word in ("drop", "mask_time_prob", "mask_feature_prob")):
            setattr(settings, key, 0.0)
        elif key == "apply_spec_augment":
            setattr(settings, key, False)


def encoder_of(whole: Any) -> Any:
    """The encoder of a model with a decoder behind it; otherwise the model itself."""
    return whole.get_encoder() if getattr(whole.config, "is_encoder_decoder", False) else whole


def _dissected(encoder: nn.Module, config: HfEncoderConfig) -> Anatomy:
    """The encoder's parts; what no state depends on is taken out of it."""
    first = next(encoder.parameters())
    inputs = batched(config, [example(config, 7)], first.device, first.dtype)
    try:
        with torch.enable_grad():
            drop_unused(encoder, encoder(**inputs).last_hidden_state)
        with torch.no_grad():
            return dissect(encoder, inputs, config.n_layers, config.dim)
    except UnfitError:
        raise
    except Exception as error:
        # Its own forward is transformers' code, and so is whatever it raises.
        raise UnfitError(f"its own forward fails ({type(error).__name__}: {one_line(error)})") from error


@torch.no_grad()
def _is_decoder(encoder: Any, config: HfEncoderConfig) -> bool:
    """Whether transformers has a causal language model of it, and no state of a text depends on a later token."""
    decoders: Any = import_module("transformers").MODEL_FOR_CAUSAL_LM_MAPPING
    first = next(encoder.parameters())
    if config.feed_kind != "text" or first.is_meta or type(encoder.config) not in decoders:
        return False
    ids = example(config, 6)[1:-1]
    other = np.append(ids[:1], (ids[1:] + 1) % (config.vocab_size or 1))
    try:
        one, two = (
            encoder(**batched(config, [each], first.device, first.dtype)).last_hidden_state[:, :1]
            for each in (ids, other)
        )
    except Exception:
        # What it fails at is told when its parts are looked for.
        return False
    # Experts that share a batch of tokens change each other's last bits.
    return gap(one, two) <= 1e-5


def _takes_padding(encoder: Any, config: HfEncoderConfig) -> bool:
    """Whether a segment of token ids gives the same states beside a longer one as it does alone."""
    first = next(encoder.parameters())
    if config.feed_kind != "text" or first.is_meta:
        return True
    short, long = (torch.from_numpy(example(config, n))[None].long() for n in (4, 9))
    padded = torch.nn.functional.pad(short, (0, long.shape[1] - short.shape[1]), value=config.padding)
    mask = torch.ones(2, long.shape[1], dtype=torch.long)
    mask[0, short.shape[1] :] = 0
    device = first.device
    with torch.no_grad():
        try:
            both = encoder(input_ids=torch.cat([padded, long]).to(device), attention_mask=mask.to(device))
        except Exception:
            # What it is asked here need not be in its power: its segments are run by their length then.
            return False
        alone = encoder(input_ids=short.to(device)).last_hidden_state[0]
    return gap(both.last_hidden_state[0, : len(alone)], alone) <= TOLERANCE[first.dtype]


def example(config: HfEncoderConfig, size: int) -> Any:
    """One segment of the model's inputs; of token ids, begin and end among them."""
    if config.feed_kind != "text":
        return config.example_inputs(size, seed=size)
    frame = config.frame or Frame(begin=0, end=0)
    n, taken = config.vocab_size or 1, {frame.begin, frame.end, config.padding}
    ids = [i for i in np.random.default_rng(size).integers(n, size=4 * size).tolist() if i not in taken][:size]
    return np.array([min(frame.begin, n - 1), *ids, min(frame.end, n - 1)], dtype=np.int64)


def batched(config: HfEncoderConfig, segments: Sequence[Any], device: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Segments of one length as the model's own forward takes them."""
    name = MAIN_INPUT[config.feed_kind]
    if config.feed_kind == "sound":
        extractor: Any = import_module("transformers").Wav2Vec2FeatureExtractor
        extract = extractor(do_normalize=config.normalize, sampling_rate=config.sample_rate)
        segments = [extract(values, sampling_rate=config.sample_rate)["input_values"][0] for values in segments]
    stacked = torch.from_numpy(np.stack(segments)).to(device)
    return {name: stacked if config.feed_kind == "text" else stacked.to(dtype)}


def _entries(inputs: TowerBatch) -> tuple[Tensor, Tensor]:
    """(B, T) for each state, which of the batch's segments it belongs to, and its place in it."""
    if inputs.features is not None:
        return inputs.features.entry, inputs.offset
    real = inputs.order >= 0
    before = torch.nn.functional.pad(inputs.segment[:, :-1], (1, 0), value=-1)
    begins = real & (inputs.segment != before)
    entry = (begins.flatten().cumsum(0) - 1).clamp(min=0).view_as(inputs.segment)
    place = torch.arange(real.shape[1], device=real.device).expand_as(entry)
    return entry, place - torch.where(begins, place, 0).cummax(dim=1).values


def _rows(inputs: TowerBatch, entry: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """(N, L) which of the batch's B * T states each segment's states are, 0 at padding; and (N,) how many it has."""
    real, (n_rows, n_columns) = inputs.order >= 0, inputs.order.shape
    if inputs.features is not None:
        n = len(inputs.features.values)
    else:
        n = n_rows * inputs.n_segments if real.is_meta else int(entry[real].max()) + 1
    longest = n_columns if real.is_meta else int(column[real].max()) + 1
    at = torch.where(real, column, longest)
    places = torch.arange(n_rows * n_columns, device=real.device).view(n_rows, n_columns)
    rows = torch.zeros(n, longest + 1, dtype=torch.long, device=real.device)
    rows = rows.index_put((entry, at), torch.where(real, places, 0))[:, :longest]
    lengths = torch.zeros(n, dtype=torch.long, device=real.device)
    return rows, lengths.index_put((entry,), real.long(), accumulate=True)


def _given(
    config: HfEncoderConfig, inputs: TowerBatch, rows: Tensor, lengths: Tensor, which: Tensor, n: int, like: Tensor
) -> tuple[dict[str, Tensor], Tensor | None]:
    """What the model's forward is given of some segments; and (n, L) bool which states are no padding, if any are."""
    name = MAIN_INPUT[config.feed_kind]
    if inputs.features is not None:
        values = inputs.features.values[which]
        if config.feed_kind == "sound":
            values = values[:, : values.shape[1] if values.is_meta else int(inputs.features.lengths[which].max())]
            values = _normalized(values) if config.normalize else values
        return {name: values.to(like.dtype)}, None
    rows, lengths = rows[which][:, :n], lengths[which]
    real = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
    ids = torch.where(real, inputs.tokens.flatten()[rows], config.padding)
    if rows.is_meta or bool(real.all()):
        return {name: ids}, None
    return {name: ids, "attention_mask": real.long()}, real


def _normalized(values: Tensor) -> Tensor:
    variance, mean = torch.var_mean(values, dim=1, keepdim=True, correction=0)
    return (values - mean) / (variance + 1e-7).sqrt()


@cache
def n_image_states(config_json: str) -> int:
    """How many states a model makes of one image; the config is given as JSON, so that the answer can be kept."""
    config = HfEncoderConfig.model_validate_json(config_json)
    with torch.device("meta"):
        encoder = encoder_of(whole_model(config, quiet=True))
    shape = config.inputs.example(1, 0).shape
    try:
        n: int = encoder(pixel_values=torch.empty(1, *shape, device="meta")).last_hidden_state.shape[1]
    except Exception as error:
        raise ValueError(f"a {config.model_type!r} model's own forward fails: {one_line(error)}") from error
    return n


def gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest of ``expected``."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))
