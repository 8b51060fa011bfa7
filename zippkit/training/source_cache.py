"""The states of frozen source towers, computed once and read from a folder afterwards.

A segment of an encoder, or a row of a decoder, is run alone the first time that it is met, so that what is kept depends
on nothing else in its batch: which examples share a batch, in which order, and where a run was killed change no bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch

from zippkit.batch.batch import Batch, TowerBatch
from zippkit.composition import Composition
from zippkit.model.source_states import source_states, tapped_depths, why_computed
from zippkit.plan.plan import Plan
from zippkit.training.device import Backend
from zippkit.training.source_units import Unit, units
from zippkit.training.state_keys import about_tower
from zippkit.training.state_store import States, StateStore, tell


class Entry(NamedTuple):
    """One entry of the cache, there or not."""

    n_bytes: int
    there: bool


@dataclass
class SourceCache:
    """Gives batches the states of those towers that no step changes."""

    zipped: Composition
    store: StateStore
    device: Backend
    precision: Literal["fp32", "bf16"]
    tokenizers: Mapping[str, str | None] = field(default_factory=dict)
    """Fingerprint of each modality's tokenizer."""
    n_computed: int = field(default=0, init=False)
    """Entries that were not there, and had to be computed."""
    _named: dict[tuple[str, tuple[int, ...]], str] = field(default_factory=dict, init=False)

    def in_fp32(self) -> SourceCache:
        """The same cache, of states that are computed without autocast, as evaluation has them."""
        return self if self.precision == "fp32" else replace(self, precision="fp32")

    def kept(self, batch: Batch) -> dict[str, tuple[int, ...]]:
        """The towers whose states a batch may take from here, each with the depths at which they are read."""
        plan = self._plan(batch)
        return {t: depths for t, depths in tapped_depths(plan).items() if not why_computed(self.zipped.model, plan, t)}

    def computed(self, batch: Batch) -> dict[str, str]:
        """The towers that every step computes, and why."""
        plan = self._plan(batch)
        towers = dict.fromkeys(op.tower for op in plan.ops)
        reasons = {name: why_computed(self.zipped.model, plan, name) for name in towers}
        return {name: reason for name, reason in reasons.items() if reason}

    def read(self, batch: Batch) -> Batch:
        """Give a batch (on the CPU) the states of those towers of which every entry is there.

        It only reads, so that it may run in another thread, ahead of the step.
        """
        return self._given(batch, compute=False)

    def complete(self, batch: Batch) -> Batch:
        """Give a batch (on the CPU) the states of all towers that it may take, and keep those that are new."""
        n_before = self.n_computed
        given = self._given(batch, compute=True)
        if n_before == 0 < self.n_computed and self.store.largest_error:
            kept, off = str(self.store.dtype).removeprefix("torch."), self.store.largest_error
            tell(f"states kept in {kept} are off by up to {off:.2g} of the largest one of their example")
        return given

    def _plan(self, batch: Batch) -> Plan:
        return self.zipped.plan.prune(self.zipped.model.wanted(batch))

    def _given(self, batch: Batch, compute: bool) -> Batch:
        towers = dict(batch.towers)
        for name, depths in self.kept(batch).items():
            towers[name] = self._filled(name, depths, batch, compute)
        return replace(batch, towers=towers)

    def _filled(self, name: str, depths: tuple[int, ...], batch: Batch, compute: bool) -> TowerBatch:
        inputs, model = batch.towers[name], self.zipped.model
        if inputs.states is not None:
            return inputs
        shape = (*inputs.order.shape, model.tower(name).config.dim)
        filled = {depth: torch.zeros(shape) for depth in depths}
        for unit, key in self._units(name, batch):
            what = self._what(name, depths)
            states = self.store.read(what, key)
            if states is None and compute:
                states = self.store.write(what, key, self._compute(name, depths, unit))
                self.n_computed += 1
            if states is None:
                return inputs
            for depth, each in filled.items():
                each[unit.row, unit.place] = states[depth]
        # Nobody else reads waveforms or pixels.
        return replace(inputs, states=filled, features=None)

    def entries(self, batch: Batch) -> list[Entry]:
        """Every entry that a batch needs."""
        found: list[Entry] = []
        for name, depths in self.kept(batch).items():
            width = len(depths) * self.zipped.graph.towers[name].dim * self.store.dtype.itemsize
            what = self._what(name, depths)
            for unit, key in self._units(name, batch):
                found.append(Entry((unit.place.stop - unit.place.start) * width, self.store.has(what, key)))
        return found

    def _units(self, name: str, batch: Batch) -> list[tuple[Unit, str]]:
        tower = self.zipped.model.tower(name)
        found = units(batch.towers[name], tower.config.causal, batch.multimodal)
        passes = any(g.around(name, self.zipped.model.owner(name)) for g in self.zipped.model.groups.values())
        return [(unit, unit.key(str(passes and unit.multimodal))) for unit in found]

    def _what(self, name: str, depths: tuple[int, ...]) -> str:
        """The name of everything besides its inputs that a tower's states depend on; hashed once."""
        if (name, depths) not in self._named:
            fed = [modality for modality, each in self.zipped.graph.modalities.items() if each.tower == name]
            tokenizers = {modality: self.tokenizers.get(modality) for modality in fed}
            about = about_tower(self.zipped.model, name, depths, tokenizers)
            how = {"precision": self.precision, "device": self.device.name, "kept": str(self.store.dtype)}
            self._named[name, depths] = self.store.open(about | how)
        return self._named[name, depths]

    def _compute(self, name: str, depths: tuple[int, ...], unit: Unit) -> States:
        inputs = unit.inputs.to(self.device.device())
        with self.device.autocast(self.precision):
            states = source_states(self.zipped.model, name, depths, inputs, unit.multimodal)
        return {depth: each[0] for depth, each in states.items()}
