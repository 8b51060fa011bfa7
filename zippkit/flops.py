"""Floating-point operations of a computation on the meta device, where tensors have shapes and no values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
Rule = Callable[..., Tensor]


class CountFlops(TorchDispatchMode):
    """Adds up what runs inside, forward and backward, a multiplication with its addition as two.

    The counts of single operations are those of `torch.utils.flop_counter`: matrix products, convolutions and
    attention; what works element by element is not counted. Outputs of the commonest operations get their shape here,
    because torch's own meta kernels are slow, and the first of them imports its compiler.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Skipping torch's compiler imports it first.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = _rule(func)
        out = func(*args, **kwargs) if rule is None or not _all_meta(args) else rule(func, *args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += int(count(*args, **kwargs, out_val=out))
        return out


def _all_meta(args: Sequence[Any]) -> bool:
    return all(arg.is_meta for arg in args if isinstance(arg, Tensor))


def _rule(func: Any) -> Rule | None:
    """How the shape of an operation's output is found here, if it is."""
    if func in _RULES:
        return _RULES[func]
    if func.is_view or torch.Tag.pointwise not in func.tags:
        return None
    return _in_place if func._schema.is_mutable else _pointwise


def _in_place(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    del func, kwargs
    changed: Tensor = args[0]
    return changed


def _pointwise(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    shape = torch.broadcast_shapes(*(each.shape for each in tensors))
    dtype = _dtype(func, tuple(_kind(arg) for arg in args), tuple(kwargs.items()))
    like = next((each for each in tensors if each.shape == shape), tensors[0])
    return torch.empty_like(like, dtype=dtype) if like.shape == shape else like.new_empty(shape, dtype=dtype)
