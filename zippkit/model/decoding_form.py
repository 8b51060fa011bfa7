"""What towers and links compute for one token of each row: an optional twin of a module, made when a generation begins.

A tower or a link that has no twin runs itself. A twin holds a copy of its module's weights in another layout, so it is
good only as long as those do not change (`Forms`).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from zippkit.model.links.base import HasLinkForm, LinkForm
from zippkit.model.tower import HasTowerForm, TowerForm


class Forms:
    """The twins of a model's towers and links, made anew where a module's weights have changed since."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, bool], tuple[nn.Module, Hashable, Any]] = {}
        self.compiled: dict[Hashable, Any] = {}
        """Compiled steps, by their operations."""

    def tower(self, tower: nn.Module, blocked: bool = True) -> TowerForm | None:
        """A tower's twin, if it has one; see `HasTowerForm.decoding_form`."""
        made: TowerForm | None = self._get(tower, blocked) if isinstance(tower, HasTowerForm) else None
        return made

    def link(self, link: nn.Module, blocked: bool = True) -> LinkForm | None:
        """A link's twin, if it has one; see `HasLinkForm.decoding_form`."""
        made: LinkForm | None = self._get(link, blocked) if isinstance(link, HasLinkForm) else None
        return made

    def clear(self) -> None:
        """Give up all copies of weights."""
        self._made.clear()
        self.compiled.clear()

    def _get(self, module: Any, blocked: bool) -> Any:
        state, key = _state_of(module), (id(module), blocked)
        held = self._made.get(key)
        if held is None or held[0] is not module or state is None or held[1] != state:
            with torch.no_grad():
                twin = None if module.training else module.decoding_form(blocked)
                held = self._made[key] = (module, state, twin)
        return held[2]

    def __deepcopy__(self, memo: dict[int, Any]) -> Forms:
        """A copied model makes its own."""
        return Forms()

    def __reduce__(self) -> tuple[type[Forms], tuple[()]]:
        """As `__deepcopy__`."""
        return Forms, ()


def _state_of(module: nn.Module) -> Hashable:
    """What changes whenever a weight does; None where nobody counts that."""
    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return (module.training, *((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors))
