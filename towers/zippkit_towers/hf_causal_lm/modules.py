"""Holds the modules of a decoder of transformers as a tower's own, and fills in their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zippkit.model.tower import Cache, Context, Tower
from zippkit.model.weights import load_into, read_tensors
from zippkit_towers.hf_causal_lm.config import HfCausalLmConfig
from zippkit_towers.hf_causal_lm.parts import find_parts
from zippkit_towers.hf_causal_lm.routing import balance_of, token_by_token
from zippkit_towers.hf_causal_lm.settings import refuse_sparse, windows_of
from zippkit_towers.hf_causal_lm.transformers_model import architecture, read_folder, whole_model


class DecoderModules(Tower[Cache, Context]):
    """A tower that owns the modules of one decoder; `HfCausalLm` runs them, the parity check compares them."""

    Config = HfCausalLmConfig
    made_by_weights = True
    takes_branches = True
    config: HfCausalLmConfig

    def __init__(self, config: HfCausalLmConfig) -> None:
        super().__init__(config)
        self.folder: Path | None = None
        """The Hugging Face folder that the weights were read from; the parity check follows its config.json."""
        whole = whole_model(config)
        self.hf: Any = whole.config
        """Transformers' config."""
        self.parts = find_parts(whole, config.n_layers)
        self._take(whole)
        self.windows = windows_of(self.hf, config.n_layers)
        """For each layer its sliding window, or None."""
        refuse_sparse(self.hf)
        self.balance = balance_of(whole)
        """The loss of its routers, where it is a mixture of experts."""

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

    def apart(self) -> str:
        """Run experts token by token: in a shared product, a token's last bits depend on the other tokens."""
        return token_by_token(self, self.hf)

    @classmethod
    def hugging_face(cls, config: HfCausalLmConfig) -> dict[str, Any]:
        """The ``config.json`` that ``transformers.AutoModelForCausalLM`` loads this tower's tensors with."""
        told = {"architectures": [architecture(config.model_type)], **config.model}
        frame = config.frame
        return told if frame is None else {"bos_token_id": frame.begin, "eos_token_id": frame.end} | told

    def mapped_weights(self, path: Path) -> Mapping[str, Tensor]:
        """The tensors of a folder that holds them by the names that they have here, as those of most families are."""
        if (path / "config.json").is_file():
            self.folder = path
        return read_tensors(path, check=False)

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
            self._take(read_folder(path, self.config, self.dtype) if folder else whole_model(self.config))
        if folder and not empty:
            found = read_folder(path, self.config, self.dtype).state_dict()
            load_into(self, {name: found[name] for name in self.state_dict() if name in found}, str(path))
        elif not folder:
            load_into(self, read_tensors(path), str(path))
