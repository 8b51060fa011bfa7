"""Encoders of families that are not known by hand: built by transformers, taken apart by watching, checked by parity.

Segments are run beside each other, each as its own row of the model's forward, so none sees another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.errors import ZippkitError
from zippkit.model.tower import Tower
from zippkit_towers.hf_encoder.calls import Anatomy, Call, record, run_layer, shallow
from zippkit_towers.hf_encoder.config import HfEncoderConfig
from zippkit_towers.hf_encoder.dissection import UnfitError, dissect, drop_unused
from zippkit_towers.hf_encoder.guessed_inputs import MAIN_INPUT, batched, entries, example, given, rows_of
from zippkit_towers.hf_encoder.guessed_shape import one_line
from zippkit_towers.hf_encoder.parity import TOLERANCE, config_of, gap
from zippkit_towers.hf_encoder.transformers_model import encoder_of, whole_model


@dataclass(frozen=True)
class _Group:
    """Segments that are run together."""

    rows: Tensor
    """(n, L) indices of their states among the batch's B * T."""
    real: Tensor | None
    """(n, L) bool; None: nothing is padding."""
    calls: list[Call]


@dataclass(frozen=True)
class Context:
    """Shared inputs of all layers in one forward pass."""

    groups: tuple[_Group, ...]
    places: Tensor
    """(B, T) index of each state among the groups' states, concatenated; the last one of those is zero."""


class Guessed:
    """A copy of an encoder without its parts, and the calls of its layers; modules and tensors are the tower's own."""

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
        entry, column = entries(inputs)
        rows, lengths = rows_of(inputs, entry, column)
        begun: list[Tensor] = []
        groups: list[_Group] = []
        firsts = torch.zeros_like(lengths)
        n_before = 0
        for which, n in self._together(config, inputs, lengths, rows.shape[1]):
            values, real = given(config, inputs, rows, lengths, which, n, next(tower.parameters()))
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
        """Segments that are run together, and the number of states of the longest of them."""
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
        """Run layer ``index`` on (B, T, D) states, and after the last one what follows it."""
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


def _registered(child: nn.Module) -> bool:
    """Whether a module has parameters or buffers."""
    return any(True for _ in child.parameters()) or any(True for _ in child.buffers())


def _dissected(encoder: nn.Module, config: HfEncoderConfig) -> Anatomy:
    """Find the encoder's parts; remove those that no state depends on."""
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
    """Whether transformers has a causal language model of it and its states depend on no later token."""
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
    """Whether padding leaves the states of a segment of token ids unchanged."""
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


@cache
def n_image_states(config_json: str) -> int:
    """Number of states of one image; the config is given as JSON, so that the answer can be cached.

    Raises:
        ValueError: the model's own forward fails.
    """
    config = HfEncoderConfig.model_validate_json(config_json)
    with torch.device("meta"):
        encoder = encoder_of(whole_model(config, quiet=True))
    shape = config.inputs.example(1, 0).shape
    try:
        n: int = encoder(pixel_values=torch.empty(1, *shape, device="meta")).last_hidden_state.shape[1]
    except Exception as error:
        raise ValueError(f"a {config.model_type!r} model's own forward fails: {one_line(error)}") from error
    return n
