"""What a forward pass does to hold less in memory: logits in chunks where there are targets, layers run twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from zippkit.batch.batch import IGNORE, TowerBatch

NATS = "nats."
"""Begins the name of a tower's loss, where its logits were never whole: `nats.text`."""
Result = TypeVar("Result")
HeadOf = Callable[[Tensor, Tensor | bool], Tensor]
"""Logits (N, 1, V) from states (N, 1, D), and from which of these rows are multimodal."""


@dataclass(frozen=True)
class Economy:
    """How a forward pass saves memory; as it stands, it does not."""

    logits: int | None = None
    """Most logits of a tower to hold at once; where all would be more, the tower's loss is given instead of them."""
    recompute: frozenset[str] = frozenset()
    """Towers whose layers, and the links into them, are run a second time in the backward pass instead of kept."""
    regions: bool = False
    """Layers and sites are compiled by themselves: what they share is made before them, in one form for all batches of
    a shape."""

    def run(self, tower: str, operation: Callable[..., Result], *given: Any) -> Result:
        """Run an operation of a tower; where it is to be recomputed, keep nothing of it but its inputs."""
        if tower not in self.recompute or not torch.is_grad_enabled():
            return operation(*given)
        result: Result = checkpoint(operation, *given, use_reentrant=False)
        return result


SPENDS = Economy()
"""Memory, as much as is quick."""
SCORES = Economy(logits=2**24)
"""64 MiB of logits in float32: for losses alone, where nobody looks at logits."""


def nats_at_targets(
    head: HeadOf,
    hidden: Tensor,
    inputs: TowerBatch,
    multimodal: Tensor | bool,
    n_rows: int,
    parameters: Sequence[nn.Parameter],
) -> Tensor:
    """Sum of the nats of a tower's targets, of whose logits no more than ``n_rows`` rows are held at once.

    Each chunk's gradient is computed along with its loss, so that its logits are gone before the next chunk's, and no
    product is computed twice.

    Args:
        head: of the tower, with all that stands around it; a position's logits depend on its own state alone.
        hidden: (B, T, D) last states.
        inputs: the tower's tokens, with their targets, and ``places`` where these are known.
        multimodal: (B,) rows that are declared multimodal, or a bool for all.
        n_rows: rows of a chunk.
        parameters: every trained parameter that ``head`` may use.
    """
    n = inputs.tokens.shape[1]
    wanted_N, states_ND, rows = inputs.targets.flatten(), hidden.flatten(0, 1), multimodal
    if isinstance(multimodal, Tensor):
        rows = multimodal[:, None].expand(-1, n).flatten()
    if (places := inputs.places) is not None:
        inside = places.clamp(min=0)
        wanted_N = torch.where(places >= 0, wanted_N[inside], IGNORE)
        states_ND = states_ND[inside]
        rows = rows[inside] if isinstance(rows, Tensor) else rows

    def nats(states: Tensor, start: int) -> Tensor:
        which = slice(start, start + n_rows)
        logits = head(states[:, None], rows[which] if isinstance(rows, Tensor) else rows).squeeze(1)
        return F.cross_entropy(logits, wanted_N[which], ignore_index=IGNORE, reduction="sum")

    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        total: Tensor = _Scored.apply(nats, n_rows, states_ND, *parameters)  # type: ignore[no-untyped-call]
        return total
    # A compiler knows how to recompute, and not what a function of our own does.
    run: Any = partial(checkpoint, nats, use_reentrant=False) if torch.is_grad_enabled() else nats
    found = [run(states_ND[start : start + n_rows], start) for start in range(0, len(wanted_N), n_rows)]
    return torch.stack(found).sum() if found else states_ND.sum() * 0


class _Scored(torch.autograd.Function):
    """The sum of all chunks' nats, whose gradient is known once it is."""

    @staticmethod
    def forward(ctx: Any, nats: Any, n_rows: int, states: Tensor, *parameters: Tensor) -> Tensor:
        total = states.new_zeros(())
        into = torch.zeros_like(states) if ctx.needs_input_grad[2] else None
        sums: list[Tensor | None] = [None] * len(parameters)
        for start in range(0, len(states), n_rows):
            which = slice(start, start + n_rows)
            with torch.enable_grad():
                chunk = states[which].detach().requires_grad_(into is not None)
                value = nats(chunk, start)
            wanted = [*([chunk] if into is not None else []), *parameters]
            found = list(torch.autograd.grad(value, wanted, allow_unused=True)) if value.requires_grad else []
            if into is not None and found:
                into[which] = found.pop(0)
            for i, grad in enumerate(found):
                if grad is not None:
                    sums[i] = grad if sums[i] is None else sums[i].add_(grad)  # type: ignore[union-attr]
            total += value.detach()
        ctx.gradients = (into, *sums)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, ()
        return (None, None, *(None if grad is None else grad.mul_(outputs[0]) for grad in gradients))
