"""What a phase learns from: tasks of datasets, and the share of the steps that each of them gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zippkit.errors import DataError
from zippkit.spec.data_section import DataSource, Use
from zippkit.training.batch_order import BatchOrder
from zippkit.training.task_data import TaskData


@dataclass(frozen=True)
class Mixture:
    """Tasks of datasets, each with its examples."""

    parts: Sequence[TaskData]
    shares: Sequence[float] | None = None
    """Of the steps, in any unit; None: by size, in epochs of all parts together."""

    def order(self, batch_size: int, seed: int) -> BatchOrder:
        """The order of batches."""
        return BatchOrder([part.lengths for part in self.parts], batch_size, seed, self.shares)


def mix(
    parts: Sequence[tuple[Use, TaskData]], sources: Mapping[str, DataSource], temperature: float, where: str
) -> Mixture:
    """Mix tasks of datasets: by the datasets' weights if they have any, inside each by the tasks' weights and sizes.

    A task of a dataset has the size ``n ** (1 / temperature)`` of its n examples, as corpora of several languages are
    mixed (arXiv 1907.05019); without weights of datasets all sizes are compared with each other.

    Args:
        parts: what each task is trained on.
        sources: the datasets' sections, by name.
        temperature: 1 mixes by size, larger ones more evenly.
        where: what messages call the phase.

    Raises:
        DataError: some datasets have a weight and others none, or nothing has a weight above 0.
    """
    names = list(dict.fromkeys(use.dataset for use, _ in parts))
    weights = {name: sources[name].weight for name in names}
    bare = [name for name, weight in weights.items() if weight is None]
    if bare and len(bare) < len(names):
        weighted = next(name for name in names if name not in bare)
        raise DataError(
            f"{where}: data.{weighted} has a weight and {', '.join(f'data.{name}' for name in bare)} none; give one to "
            "each dataset of the phase, or to none"
        )
    sizes = [use.line.weight * len(part) ** (1 / temperature) for use, part in parts]
    shares = list(sizes)
    if not bare:
        whole = {n: sum(s for s, (use, _) in zip(sizes, parts, strict=True) if use.dataset == n) for n in names}
        for i, (use, _) in enumerate(parts):
            weight = weights[use.dataset] or 0.0
            shares[i] = weight * sizes[i] / whole[use.dataset] if whole[use.dataset] else 0.0
    kept = [(share, part) for share, (_, part) in zip(shares, parts, strict=True) if share > 0]
    if not kept:
        raise DataError(f"{where}: every task and dataset has weight 0, so there is nothing to draw")
    plain = bare and temperature == 1 and all(use.line.weight == 1 for use, _ in parts)
    return Mixture([part for _, part in kept], None if plain else [share for share, _ in kept])
