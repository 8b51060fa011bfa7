"""A composition's model on the meta device: every module and shape, and no values, weights or memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zippkit.model.bare import SET_VALUES
from zippkit.model.build import build_model
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.graph import Graph
from zippkit.spec.composition_spec import CompositionSpec

_MAKE = (torch.zeros, torch.ones)


class _NoValues(TorchFunctionMode):
    """Leaves out what only sets values: on the meta device it does nothing, slowly."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if getattr(func, "__name__", "") in SET_VALUES:
            changed: Tensor = args[0] if args else kwargs["tensor"]
            return changed
        return (torch.empty if func in _MAKE else func)(*args, **(kwargs or {}))


def meta_model(spec: CompositionSpec) -> tuple[ZippedModel, Graph]:
    """The model as `zippkit.model.build.build_model` builds it, without its weights, which need not be there.

    Raises:
        SpecError: everything that is wrong with the spec.
    """
    with torch.device("meta"), _NoValues():
        return build_model(spec, load_weights=False)
