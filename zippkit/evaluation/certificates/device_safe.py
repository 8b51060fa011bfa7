"""`zippkit verify --device-safe`: whether a training step waits for no value and is one graph for each bucket."""

from __future__ import annotations

import copy
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from zippkit.batch.batch import Batch
from zippkit.composition import Composition
from zippkit.evaluation.certificates.probe import draws_for, orders
from zippkit.evaluation.certificates.report import Certificate, RefutedError, Report
from zippkit.model.loss import loss
from zippkit.model.zipped_model import ZippedModel
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.phase import Phase
from zippkit.training.backends import CPU, undescribed
from zippkit.training.optimizer import build_optimizer
from zippkit.training.step import build_step

MULTIPLE = 32
"""Rows are padded to a multiple of this many tokens, and the number of targets to as many."""
N_BATCHES = 3
"""Of each kind, with other tokens and other lengths."""

Layouts = Sequence[Sequence[str]]


def device_safe(zipped: Composition) -> Report:
    """Two claims for each kind of batch: its towers alone, each linked direction, and all of them together.

    D1: forward pass, loss, backward pass and optimizer run on tensors without values, so that nothing depends on one,
    neither what is computed nor its shape; no device is waited for. D2: batches of one shape are one graph without a
    break, so that a device that compiles does so once for each bucket.
    """
    return Report(tuple(certificate for kind in _kinds(zipped).items() for certificate in _certify(zipped, *kind)))


def _kinds(zipped: Composition) -> dict[str, Layouts]:
    """The rows of each kind of batch, as modalities in their order."""
    draws = draws_for(zipped)
    directions = dict.fromkeys((site.source, site.target) for site in zipped.graph.sites)
    alike = [*([name] for name in draws.modalities), *directions]
    found: dict[str, Layouts] = {" -> ".join(names): [names] * 2 for names in alike}
    found["all together"] = [*([name] for name in zipped.graph.towers), *orders(zipped)]
    return {name: rows for name, rows in found.items() if any(draws.is_predicted(each) for row in rows for each in row)}


def _certify(zipped: Composition, kind: str, layouts: Layouts) -> Iterator[Certificate]:
    claims: dict[str, tuple[str, Callable[[Composition, list[Batch]], str]]] = {
        "D1": ("waits for no value", _runs_without_values),
        "D2": ("is one graph for each shape", _is_one_graph),
    }
    batches = [_batch(zipped, layouts, seed) for seed in range(N_BATCHES)]
    for name, (claim, prove) in claims.items():
        began = time.monotonic()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                passed, detail = True, prove(zipped, batches)
            except RefutedError as error:
                passed, detail = False, str(error)
        seconds = time.monotonic() - began
        yield Certificate(name, f"a step of {kind} {claim}", passed, " ".join(detail.split()), seconds)


def _batch(zipped: Composition, layouts: Layouts, seed: int) -> Batch:
    """A batch as a device that compiles is given it: padded, and without what describes its very rows."""
    draws = draws_for(zipped, seed)
    rows = [draws.row(names) for names in layouts]
    multimodal = [len(set(names)) > 1 for names in layouts]
    alike = multimodal[0] if len(set(multimodal)) == 1 else multimodal
    return undescribed(zipped.collate(rows, MULTIPLE, multimodal=alike).with_places(MULTIPLE))


def _runs_without_values(zipped: Composition, batches: list[Batch]) -> str:
    """D1.

    Raises:
        RefutedError: tells the operation, and where it is called.
    """
    phase = Phase(steps=1)
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        model = copy.deepcopy(zipped.model).train()
    with mode:
        given = _mapped(batches[0], mode.from_tensor)
        try:
            if not _total(model, given).requires_grad:
                return "such rows train nothing: forward pass and loss"
            optimizer = build_optimizer(model, learning_rates(zipped.spec, phase), phase)
            build_step(model, optimizer, phase, CPU())(given)
        except Exception as error:
            raise RefutedError(f"{_place(error)}: {_said(error)}") from error
    return "forward pass, loss, backward pass and optimizer"


def _is_one_graph(zipped: Composition, batches: list[Batch]) -> str:
    """D2.

    Raises:
        RefutedError: tells what breaks the graph, or why a batch of the same shape is another one, and where.
    """
    model = copy.deepcopy(zipped.model).train()

    by_shape: dict[object, list[Batch]] = {}
    for batch in batches:
        by_shape.setdefault(_shapes(batch), []).append(batch)
    for alike in by_shape.values():
        torch._dynamo.reset()
        compiled = torch.compile(_total, fullgraph=True, dynamic=False, backend="aot_eager")
        for batch in alike:
            try:
                with torch._dynamo.config.patch(error_on_recompile=True):
                    total = compiled(model, batch)
                if total.requires_grad:
                    total.backward()  # type: ignore[no-untyped-call]
            except Exception as error:
                raise RefutedError(f"{_place(error)}: {_said(error)}") from error
    torch._dynamo.reset()
    return f"{len(batches)} batches of {len(by_shape)} shape{'s' if len(by_shape) > 1 else ''}"


def _total(model: ZippedModel, batch: Batch) -> Tensor:
    outputs = model(batch)
    return loss(outputs, batch, model.added_losses(outputs, batch))["total"]


def _shapes(batch: Batch) -> object:
    """What a graph is compiled for: the shapes of a batch's tensors, and what else is no tensor."""
    shapes: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        shapes.append(tuple(tensor.shape))
        return tensor

    _mapped(batch, note)
    return batch.outputs, batch.sees, tuple(shapes)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch, or a part of it, with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(each, change) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _mapped(getattr(value, field.name), change) for field in fields(value)})
    return value


def _place(error: BaseException) -> str:
    """File, line and function of the innermost call that is not torch's own."""
    own = Path(torch.__file__).parent
    told = re.findall(r'File "(.+?)", line (\d+), in (\S+)', str(error))  # as dynamo tells where it gave up
    frames = [(frame.filename, str(frame.lineno), frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    for file, line, function in reversed(told or frames):
        if not Path(file).is_relative_to(own):
            path = Path(file)
            return f"{path.parent.name}/{path.name}:{line} in {function}"
    return "in torch"


def _said(error: BaseException) -> str:
    """What is wrong, in one line."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    guards = [line for line in lines if line.startswith("0/0:")]
    return f"{type(error).__name__}: {(guards or lines or [''])[0]}"
