"""Floating-point operations of a computation on the meta device, where tensors have shapes and no values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, reduce
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
Rule = Callable[..., Tensor]


class CountFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what runs inside, forward and backward; a multiplication and its addition are two.

    What an operation counts is told by `torch.utils.flop_counter`: matrix products and convolutions (attention is two
    matrix products here), and nothing for what works entry by entry. The outputs of common operations are made here:
    torch's own meta kernels are slow Python, and the first one to run imports torch's compiler.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # A mode that its compiler is to skip imports it, to say so; where torch does not ask, nothing is lost.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        rule = _rule(func) if _on_meta(args, kwargs) else None
        out = func(*args, **kwargs) if rule is None else rule(func, *args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        self.total += int(count(*args, **kwargs, out_val=out)) if count else 0
        return out


def _on_meta(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operation's output is without values; what is made on the way from known numbers has some."""
    tensors = [each for arg in args for each in (arg if isinstance(arg, (list, tuple)) else (arg,))]
    if any(isinstance(each, Tensor) and each.is_meta for each in tensors):
        return True
    return torch.device(kwargs.get("device") or "cpu").type == "meta"


@cache
def _rule(func: Any) -> Rule | None:
    """Return the rule that makes an operation's output here; None where torch makes it."""
    if func in _RULES:
        return _RULES[func]
    one = [str(each.type) for each in func._schema.returns] == ["Tensor"]
    if func.is_view or torch.Tag.pointwise not in func.tags or not one:
        return None
    if func._schema.is_mutable:
        return _in_place if func._schema.name.endswith("_") else None
    return _pointwise


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")


def _like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty tensor of the same shape and, as in torch, memory order, so that views of it work."""
    dtype = dtype or x.dtype
    strides = x.stride()
    if 0 in strides or x.is_contiguous():
        return _empty(x.shape, dtype)
    order = sorted(range(x.dim()), key=lambda d: -strides[d])
    return _empty([x.shape[d] for d in order], dtype).permute([order.index(d) for d in range(x.dim())])


def _in_place(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    del func, kwargs
    changed: Tensor = args[0]
    return changed


def _pointwise(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    shape = _broadcast(*(each.shape for each in tensors))
    dtype = _dtype(func, *map(_kind, args), **kwargs)
    like = next((each for each in tensors if each.shape == shape), None)
    if like is None or kwargs.get("memory_format") is torch.contiguous_format:
        return _empty(shape, dtype)
    return _like(like, dtype)


@cache
def _broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """`torch.broadcast_shapes` of shapes that fit, without its imports."""
    n_dims = max(map(len, shapes))
    padded = [(1,) * (n_dims - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))


def _kind(arg: Any) -> Any:
    """Return what the result's dtype depends on: of a tensor, its dtype and whether it is a scalar."""
    return (arg.dtype, arg.dim() == 0) if isinstance(arg, Tensor) else arg


@lru_cache(maxsize=None, typed=True)
def _dtype(func: Any, *kinds: Any, **kwargs: Any) -> torch.dtype:
    """The type of a result: that of nothing at all, really computed."""
    args = [torch.zeros(() if kind[1] else (0,), dtype=kind[0]) if isinstance(kind, tuple) else kind for kind in kinds]
    dtype: torch.dtype = func(*args, **kwargs).dtype
    return dtype


def _same_as(index: int) -> Rule:
    def rule(func: Any, *args: Any, **kwargs: Any) -> Tensor:
        del func, kwargs
        return _like(args[index])

    return rule


def _product(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    del func, kwargs
    left, right = args[-2:]
    return _empty((*left.shape[:-1], right.shape[-1]), left.dtype)


def _reduced(func: Any, x: Tensor, dims: Any = None, keep: bool = False, **kwargs: Any) -> Tensor:
    every = torch.zeros(1, dtype=x.dtype)
    if func is aten.sum.default:
        return _empty((), func(every, **kwargs).dtype)
    dims = [dims] if isinstance(dims, int) else dims or range(x.dim())
    gone = {d % x.dim() for d in dims}
    shape = [1 if d in gone else n for d, n in enumerate(x.shape) if keep or d not in gone]
    return _empty(shape, func(every, 0 if func is aten.any.dim else [0], **kwargs).dtype)


def _cat(func: Any, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    del func
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return _empty(shape, reduce(torch.promote_types, (part.dtype for part in parts)))


def _stack(func: Any, parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    del func
    shape = list(parts[0].shape)
    shape.insert(dim % (len(shape) + 1), len(parts))
    return _empty(shape, parts[0].dtype)


def _made(func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Run a factory function on the CPU and return its output without values."""
    made = func(*args, **{**kwargs, "device": "cpu"})
    return _empty(made.shape, made.dtype)


def _embedding(func: Any, weight: Tensor, ids: Tensor, *options: Any) -> Tensor:
    del func, options
    return _empty((*ids.shape, weight.shape[1]), weight.dtype)


def _embedding_backward(func: Any, grad: Tensor, ids: Tensor, n_rows: int, *options: Any) -> Tensor:
    del func, ids, options
    return _empty((n_rows, grad.shape[-1]), grad.dtype)


def _of_size(func: Any, grad: Tensor, size: Sequence[int], *options: Any) -> Tensor:
    del func, options
    return _empty(size, grad.dtype)


def _viewed(func: Any, x: Tensor, size: Sequence[int]) -> Tensor:
    del func
    return x.reshape(size)


_RULES: dict[Any, Rule] = {
    **dict.fromkeys((aten.mm.default, aten.bmm.default, aten.addmm.default), _product),
    **dict.fromkeys((aten.mean.dim, aten.sum.dim_IntList, aten.sum.default, aten.any.dim), _reduced),
    **dict.fromkeys((aten._safe_softmax.default, aten._softmax.default, aten.tril.default), _same_as(0)),
    **dict.fromkeys((aten._softmax_backward_data.default, aten.ones_like.default), _same_as(0)),
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    **dict.fromkeys((aten.arange.start_step, aten.ones.default, aten.zeros.default, aten.scalar_tensor.default), _made),
    aten.embedding.default: _embedding,
    aten.embedding_dense_backward.default: _embedding_backward,
    **dict.fromkeys((aten.slice_backward.default, aten.select_backward.default), _of_size),
    aten._unsafe_view.default: _viewed,
}
"""Operations that work on more than entries."""
