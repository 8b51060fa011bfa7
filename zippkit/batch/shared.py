"""What the operations of one forward pass have in common, made by the first of them that asks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor

Made = TypeVar("Made")


class Shared:
    """Masks and rotary angles of one forward pass: it begins empty and ends with the pass."""

    static: bool
    """Whether layers and sites are compiled by themselves, so that what is made must be of one form for all batches of
    a shape."""

    def __init__(self, visible: Mapping[str, Tensor], static: bool = False) -> None:
        """Begin a pass.

        Args:
            visible: by tower, the column `TowerBatch.visible` that other towers' staircases describe.
            static: see ``static``.
        """
        self._visible, self.static = visible, static
        self._asked: dict[Hashable, object] | None = None
        self._made: dict[Hashable, list[tuple[tuple[Tensor, ...], object]]] = {}

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
                return self._noted(kind, cast("Made", made))
        new = make()
        known.append((of, new))
        return self._noted(kind, new)

    def _noted(self, kind: Hashable, made: Made) -> Made:
        if self._asked is not None:
            self._asked[kind] = made
        return made

    def asked(self, ask: Callable[[], object]) -> MadeBefore:
        """What ``ask`` asks for, made if need be: all that one compiled operation needs of the pass."""
        found: dict[Hashable, object] = {}
        self._asked = found
        try:
            ask()
        finally:
            self._asked = None
        return MadeBefore(found)


class MadeBefore:
    """What one compiled operation is given of a forward pass, in which only its own values differ between calls."""

    static = True

    def __init__(self, made: Mapping[Hashable, object]) -> None:
        self._made = made

    def tower_of(self, visible: Tensor) -> str | None:
        """None: nothing is described inside a compiled operation."""
        del visible
        return None

    def once(self, kind: Hashable, of: tuple[Tensor, ...], make: Callable[[], Made]) -> Made:
        """What was made before; anything else is made inside the operation."""
        del of
        return cast("Made", self._made[kind]) if kind in self._made else make()
