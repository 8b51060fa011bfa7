"""What the operations of one forward pass have in common, made by the first of them that asks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor

Made = TypeVar("Made")


class Shared:
    """Masks and rotary angles of one forward pass: it begins empty and ends with the pass."""

    def __init__(self, visible: Mapping[str, Tensor]) -> None:
        """Begin a pass.

        Args:
            visible: by tower, the column `TowerBatch.visible` that other towers' staircases describe.
        """
        self._visible = visible
        self._made: dict[Hashable, list[tuple[tuple[Tensor, ...], object]]] = {}

    def apart(self) -> Shared:
        """The same pass, of which nothing is made yet: for what is compiled by itself, and must not ask what was."""
        return Shared(self._visible)

    def tower_of(self, visible: Tensor) -> str | None:
        """The tower of which this very tensor is the column; None: of none that is described."""
        return next((name for name, column in self._visible.items() if column is visible), None)

    def once(self, kind: Hashable, of: tuple[Tensor, ...], make: Callable[[], Made]) -> Made:
        """What ``make`` gives for these very tensors, made at the first call.

        Args:
            kind: what is made, with all settings.
            of: the tensors that it is made of; another tensor of the same values is another one.
            make: makes it.
        """
        # Found by identity, which nothing else takes while the tensors are kept; a compiled step asks for no identity.
        known = self._made.setdefault(kind if torch.compiler.is_compiling() else (kind, *map(id, of)), [])
        for tensors, made in known:
            if all(one is other for one, other in zip(tensors, of, strict=True)):
                return cast("Made", made)
        new = make()
        known.append((of, new))
        return new
