"""Bytes that a forward pass keeps for its backward pass, counted on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zippkit.batch.batch import Batch
from zippkit.model.economy import Economy
from zippkit.model.zipped_model import ZippedModel
from zippkit.report.flops import CountFlops


class _Fused(torch.autograd.Function):
    """Attention as fused kernels keep it: queries, keys, values and what came out, and no table of weights."""

    @staticmethod
    def forward(ctx: Any, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> Tensor:
        out = torch.empty(*q_BHTK.shape[:-1], v_BHSK.shape[-1], dtype=q_BHTK.dtype, device=q_BHTK.device)
        ctx.save_for_backward(q_BHTK, k_BHSK, v_BHSK, out)
        return out


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is F.scaled_dot_product_attention:
            return _Fused.apply(*args[:3])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Saved:
    """Adds up what autograd is given to keep; tensors that share memory count once, parameters not at all."""

    def __init__(self, model: ZippedModel) -> None:
        self.total = 0
        self._seen = {id(parameter.untyped_storage()): parameter.untyped_storage() for parameter in model.parameters()}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self._seen:
            # Kept, so that no other one is given its place.
            self._seen[id(storage)] = storage
            self.total += tensor.numel() * tensor.element_size()
        return tensor


def saved_bytes(model: ZippedModel, batch: Batch, recompute: frozenset[str] = frozenset()) -> int:
    """Bytes that a training step in float32 keeps between its forward and backward pass, the loss itself left out.

    Args:
        model: on the meta device, in training mode.
        batch: on the meta device.
        recompute: towers whose layers are run a second time.
    """
    saved = _Saved(model)
    with CountFlops(), _FusedAttention(), saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        kept = model(batch, Economy(recompute=recompute))
    del kept
    states = {name: batch.towers[name].tokens.numel() * 4 for name in recompute if name in batch.towers}
    layers = {name: sum(op.kind in ("layer", "read") and op.tower == name for op in model.plan.ops) for name in states}
    # What is run again begins with the states before it, which checkpoints keep by themselves.
    return saved.total + sum(n * layers[name] * model.tower(name).config.dim for name, n in states.items())
