"""What one rank holds of tensors whose rows are dealt to several: which rows, and filling them from whole tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from zippkit.errors import CheckpointError


@dataclass(frozen=True)
class Piece:
    """One rank's rows of a tensor."""

    rows: Tensor
    """The rows, or all of the tensor, where every rank holds all of it; none of them, where others hold them all."""
    shape: torch.Size
    """Of the whole tensor."""
    first: int = 0
    """Index of the first row."""
    writes: bool = True
    """Whether this rank is the one that writes these rows: replicas hold the same ones."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor."""
        return self.rows.dtype

    def numel(self) -> int:
        """Number of elements of its rows."""
        return self.rows.numel()

    @property
    def offset(self) -> int:
        """Number of the whole tensor's elements that stand before the rows."""
        return self.first * prod(self.shape[1:])

    def of(self, whole: Tensor) -> Tensor:
        """The same rows of another tensor of the whole's shape."""
        return whole[self.first : self.first + self.rows.shape[0]] if self.shape != self.rows.shape else whole


Held = Tensor | Piece
"""A tensor, dealt to ranks or not, or what is kept of it to be saved."""


def is_split(tensor: object) -> bool:
    """Whether ranks hold pieces of a tensor; what is no DTensor, each of them has for itself."""
    return hasattr(tensor, "device_mesh")


def piece(tensor: Tensor, rank: int = 0) -> Piece:
    """What this process holds of a tensor; a plain one is whole on every rank, and the first one writes it.

    Raises:
        CheckpointError: it is dealt in another way than by rows.
    """
    if not is_split(tensor):
        return Piece(tensor.detach(), tensor.shape, writes=rank == 0)
    from torch.distributed.tensor import DTensor, Replicate, Shard

    assert isinstance(tensor, DTensor)
    mesh, rows = tensor.device_mesh, tensor.to_local().detach()
    dealt = [i for i, place in enumerate(tensor.placements) if place == Shard(0)]
    others = [i for i, place in enumerate(tensor.placements) if place == Replicate()]
    if len(dealt) > 1 or len(dealt) + len(others) < mesh.ndim:
        raise CheckpointError(f"a tensor dealt as {tensor.placements} cannot be saved; expected by rows, once")
    # Chunks as torch deals them: equal ones but for the last, and maybe none for some ranks.
    chunk = -(-tensor.shape[0] // mesh.size(dealt[0])) if dealt else 0
    first = min(chunk * mesh.get_local_rank(dealt[0]), tensor.shape[0]) if dealt else 0
    return Piece(rows, tensor.shape, first, all(mesh.get_local_rank(i) == 0 for i in others))


def fill_rows(own: Tensor, whole: Tensor) -> None:
    """Copy this rank's rows of a whole tensor, which may be mapped from a file; no other row is read."""
    if own is whole:
        return
    here = piece(own)
    if is_split(whole):
        here.rows.copy_(piece(whole).rows)
    elif here.rows.numel():
        here.rows.copy_(here.of(whole))


def pieces(tensors: Mapping[str, Held], rank: int) -> dict[str, Piece]:
    """What this process holds of each tensor."""
    return {name: each if isinstance(each, Piece) else piece(each, rank) for name, each in tensors.items()}


def rows_of(held: Held) -> Tensor:
    """The rows that this process holds: of a plain tensor, all."""
    if isinstance(held, Piece):
        return held.rows
    return piece(held).rows if is_split(held) else held
