"""Shared by the checks of towers and links: one runner that collects every failure, and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from zippkit.batch.batch import Features, TowerBatch

TOLERANCE = 1e-4
"""Relative tolerance, to the largest value, of rounding between runs of different shapes."""

Subject = TypeVar("Subject")
Check = Callable[[Subject], Iterator[str]]
"""Yields one sentence for everything that is wrong."""


class SkippedCheck(Exception):  # noqa: N818 (nothing is wrong)
    """A check that does not apply; the message says why."""


def run_checks(name: str, checks: Sequence[Check[Subject]], subject: Subject) -> list[str]:
    """Run every check.

    Returns:
        What could not be checked, and why.

    Raises:
        AssertionError: everything that is wrong.
    """
    failures: list[str] = []
    skipped: list[str] = []
    for check in checks:
        what = check.__name__.strip("_").replace("_", " ")
        try:
            failures.extend(check(subject))
        except SkippedCheck as reason:
            skipped.append(f"{what}: not checked, {reason}")
        except Exception as error:
            # The subject's own code runs here, so anything can come out.
            failures.append(f"{what}: {type(error).__name__}: {error}")
    if failures:
        raise AssertionError("\n- ".join([f"{name} does not keep its protocol:", *failures]))
    return skipped


def differs(a: Tensor, b: Tensor) -> Tensor:
    """(B, T) bool: which positions of two (B, T, D) tensors differ in any bit."""
    return (a != b).any(dim=-1)


def off(result: Tensor, expected: Tensor, where: Tensor) -> str | None:
    """The first position, among (B, T) ``where``, at which two results differ by more than rounding."""
    gap = (result - expected).abs().amax(dim=-1).nan_to_num(nan=float("inf")) * where
    wrong = (gap > TOLERANCE * max(1.0, float(expected.abs().max()))).nonzero()
    if not len(wrong):
        return None
    row, index = wrong[0].tolist()
    return f"row {row} position {index} is off by {float(gap[row, index]):.2g}"


def unreached(module: nn.Module) -> list[str]:
    """Trained parameters whose gradient is None or all zeros."""
    trained = [(name, p.grad) for name, p in module.named_parameters() if p.requires_grad]
    return [name for name, grad in trained if grad is None or not grad.any()]


def repeated(tokens: TowerBatch, n: int) -> TowerBatch:
    """A batch of one row, as a batch of ``n`` such rows."""
    rows, features = tokens.mapped(lambda column: column.expand(n, -1)), tokens.features
    if features is None:
        return rows
    lengths = features.lengths.repeat(n)
    values = features.values.repeat(n, *[1] * (features.values.dim() - 1))
    entry = features.entry + len(features.lengths) * torch.arange(n)[:, None]
    return replace(rows, features=Features(values, lengths, entry))


def columns(tokens: TowerBatch, at: Tensor) -> TowerBatch:
    """The tokens at (B, n) places of their rows."""
    features = tokens.features
    entries = None if features is None else replace(features, entry=features.entry.gather(1, at))
    return replace(tokens.mapped(lambda column: column.gather(1, at)), features=entries)
