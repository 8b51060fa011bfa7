"""`check_tower`: whether a tower keeps its protocol."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from zippkit.batch.batch import Batch, TowerBatch
from zippkit.batch.collate import collate
from zippkit.batch.describe import describe_self
from zippkit.batch.masks import cache_mask
from zippkit.errors import ZippkitError
from zippkit.evaluation.certificates.probe import Draws, jitter, real
from zippkit.evaluation.certificates.report import some
from zippkit.evaluation.plugin_checks.checks import SkippedCheck, columns, differs, off, repeated, run_checks, unreached
from zippkit.model.run_tower import own_mask, tower_logits, tower_states
from zippkit.model.tower import Tower
from zippkit.model.weights import filled_in_place, write_tensors
from zippkit.spec.kinds import Frame, TowerConfig


def check_tower(tower: Tower | TowerConfig) -> list[str]:
    """Check that a tower keeps its protocol (`zippkit.model.tower.Tower`).

    Shapes, determinism, masks, rows of a batch, padding, the cache, gradients, saving and loading, parameter names.
    The tower itself and the global random state stay as they are.

    Args:
        tower: a small tower; or its config, if that names its tower as ``implementation``.

    Returns:
        What could not be checked, and why.

    Raises:
        AssertionError: says in one sentence each what is wrong, everything at once.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = copy.deepcopy(tower) if isinstance(tower, Tower) else _build(tower)
        own.apart()
        return run_checks(type(own).__name__, _CHECKS, _Case(own.eval()))


def _build(config: TowerConfig) -> Tower:
    module, _, name = config.implementation.partition(":")
    if not name:
        raise ValueError(f"{type(config).__name__} does not name its tower (`implementation`); give the tower itself")
    cls: type[Tower] = getattr(import_module(module), name)
    return cls(config)


class _Case:
    """A tower as it was built, a copy of it in which every layer matters, and batches for it."""

    def __init__(self, tower: Tower) -> None:
        self.built = tower
        self.config = tower.config
        frame = None if self.config.continuous else self.config.frame or Frame(begin=0, end=1)
        self.towers = {"it": self.config.model_copy(update={"frame": frame})}
        self.draws = Draws(self.towers)

    @cached_property
    def tower(self) -> Tower:
        """With its parameters moved: a fresh tower's attention can be too weak, or zero, for its faults to show."""
        randomized = copy.deepcopy(self.built)
        jitter(randomized.parameters())
        with torch.no_grad():
            finite = _result(randomized, self.inputs(1, 2)).isfinite().all()
        # Some parameters have a range that they must not leave.
        return randomized if finite else self.built

    def inputs(self, *n_segments: int) -> TowerBatch:
        """A row for each number of segments."""
        return collate([self.draws.row(["it"] * n) for n in n_segments], self.towers).towers["it"]

    def changed(self, inputs: TowerBatch, where: Tensor) -> TowerBatch:
        """Other tokens wherever (B, T) ``where`` says so."""
        batch = Batch({"it": inputs}, ("it",), False, frozenset())
        return self.draws.changed(batch, {"it": where}).towers["it"]

    @torch.no_grad()
    def logits(self, inputs: TowerBatch) -> Tensor:
        """Or the states of a tower that has no head."""
        return _result(self.tower, inputs)


def _result(tower: Tower, inputs: TowerBatch) -> Tensor:
    return tower_logits(tower, inputs) if tower.config.predicts else tower_states(tower, inputs)


@torch.no_grad()
def _shapes(case: _Case) -> Iterator[str]:
    inputs = case.inputs(1, 2)
    tower, expected = case.built, (*inputs.tokens.shape, case.config.dim)
    hidden, context = tower.start(inputs, own_mask(tower, inputs))
    if hidden.shape != expected:
        yield f"start gives states of shape {tuple(hidden.shape)}, expected (B, T, dim) = {expected}"
    for index in range(case.config.n_layers):
        hidden = tower.layer(index, hidden, context)
        if hidden.shape != expected:
            yield f"layer {index} gives states of shape {tuple(hidden.shape)}, expected (B, T, dim) = {expected}"
    if not case.config.predicts:
        if not hidden.isfinite().all():
            yield "the states are not finite"
        return
    logits = tower.head(hidden)
    wanted = (*inputs.tokens.shape, case.config.vocab_size or logits.shape[-1])
    if logits.shape != wanted:
        yield f"head gives logits of shape {tuple(logits.shape)}, expected (B, T, vocab_size) = {wanted}"
    if not logits.isfinite().all():
        yield "the logits are not finite"


def _determinism(case: _Case) -> Iterator[str]:
    inputs = case.inputs(1, 2)
    if not torch.equal(case.logits(inputs), case.logits(inputs)):
        yield "two runs of one batch give different logits in evaluation mode"


def _masks(case: _Case) -> Iterator[str]:
    one = case.inputs(2)
    n = one.tokens.shape[1]
    before = repeated(one, n)
    after = case.changed(before, torch.eye(n, dtype=torch.bool))
    hidden_from = ~describe_self(one, case.config.causal).dense()[0].T
    moved = differs(case.logits(before), case.logits(after))
    for key, query in (moved & hidden_from).nonzero().tolist()[:1]:
        why = "it looks ahead" if case.config.causal else "the mask is not kept"
        yield f"the logits at position {query} change when the token at position {key} does: {why}"


def _rows_apart(case: _Case) -> Iterator[str]:
    inputs = case.inputs(2, 1, 2)
    for row in range(len(inputs.tokens)):
        here = torch.zeros_like(real(inputs))
        here[row] = True
        moved = (differs(case.logits(inputs), case.logits(case.changed(inputs, here))) & ~here).nonzero()
        if len(moved):
            yield f"the logits of row {int(moved[0, 0])} change when row {row} of the batch does"
            return


def _padding(case: _Case) -> Iterator[str]:
    inputs = case.inputs(1, 2, 2)
    n = int(real(inputs)[0].sum())
    alone = columns(inputs, torch.arange(n).expand(3, n))
    found = off(case.logits(inputs)[:1, :n], case.logits(alone)[:1], torch.ones(1, n))
    if found:
        yield f"padding on the right changes what stands before it: {found}"
    if inputs.features is not None:
        moved = differs(case.logits(inputs), case.logits(case.changed(inputs, ~real(inputs)))) & real(inputs)
        if moved.any():
            yield "what stands behind the true length of a segment's inputs changes its states"


def _cache(case: _Case) -> Iterator[str]:
    if not case.config.causal:
        raise SkippedCheck("the tower is not causal")
    inputs = case.inputs(2, 2)
    full = case.logits(inputs)
    for n_given in (0, 2):
        try:
            stepped = _stepped(case.tower, inputs, n_given)
        except NotImplementedError as error:
            raise SkippedCheck(str(error)) from error
        found = off(stepped, full, real(inputs))
        if found:
            how = f"{n_given} tokens at once and then one at a time" if n_given else "one token at a time"
            yield f"with a cache, {how}, the logits are not those of the whole sequence: {found}"


@torch.no_grad()
def _stepped(tower: Tower, inputs: TowerBatch, n_given: int) -> Tensor:
    """Logits (B, T, V) with a cache: some tokens at once, then one at a time, each row one token behind the last."""
    n_rows, n = inputs.tokens.shape
    cache = tower.new_cache(n_rows, n)
    rows = torch.arange(n_rows)[:, None]
    pieces = [torch.arange(n_given).expand(n_rows, n_given)] if n_given else []
    pieces += [(step - rows).clamp(min=0, max=n - 1) for step in range(n_given, n + n_rows - 1)]
    logits = torch.empty(0)
    for at in pieces:
        new = columns(inputs, at)
        hidden, context = tower.start(new, cache_mask(new.positions, int(at.max()) + 1), cache)
        for index in range(tower.config.n_layers):
            hidden = tower.layer(index, hidden, context)
        out = tower.head(hidden)
        logits = logits if len(logits) else out.new_zeros(n_rows, n, out.shape[-1])
        logits[rows, at] = out
    return logits


def _gradients(case: _Case) -> Iterator[str]:
    loss = _result(case.tower, case.inputs(2, 1, 2)).float().square().sum()
    if not loss.requires_grad:
        raise SkippedCheck("every parameter is frozen")
    loss.backward()  # type: ignore[no-untyped-call]
    missed = unreached(case.tower)
    if missed:
        yield f"no gradient reaches {some(missed)}"


def _saving_and_loading(case: _Case) -> Iterator[str]:
    inputs = case.inputs(1, 2)
    # Whoever built the tower may have seeded with 0 too; what it drew and does not save must not be drawn again.
    torch.manual_seed(0x5A7ED)
    other = type(case.tower)(case.config).eval()
    other.apart()
    with tempfile.TemporaryDirectory() as folder:
        write_tensors(Path(folder) / "model.safetensors", case.tower.state_dict())
        try:
            with filled_in_place(other, "a saved tower"):
                other.load_weights(Path(folder))
        except ZippkitError as error:
            yield str(error)
    with torch.no_grad():
        same = torch.equal(_result(other, inputs), case.logits(inputs))
    if not same:
        yield "a tower that is saved and loaded gives other logits: its state dict does not hold everything"


def _parameter_names(case: _Case) -> Iterator[str]:
    told = case.config.parameter_names()
    if told is None:
        return
    names = {name for name, _ in case.tower.named_parameters()}
    if missing := sorted(names - set(told)):
        yield f"parameter_names() leaves out {some(missing)}"
    if unknown := sorted(set(told) - names):
        yield f"parameter_names() names {some(unknown)}, which the tower does not have"


_CHECKS = (
    _shapes,
    _determinism,
    _masks,
    _rows_apart,
    _padding,
    _cache,
    _gradients,
    _saving_and_loading,
    _parameter_names,
)
