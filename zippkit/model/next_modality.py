"""What comes after a segment: a small head at its end that tells the next modality, or that nothing follows."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from zippkit.batch.batch import IGNORE, TowerBatch
from zippkit.model.layers import at_least_float32

PREFIX = "next."
"""Of the logits of a tower's head: `next.text`."""


class NextHead(nn.Module):
    """Reads a tower's last states; only those at segments' ends mean anything."""

    def __init__(self, dim: int, n_modalities: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim)
        self.out = nn.Linear(dim, n_modalities + 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, D) to (B, T, N + 1): the modalities in their order, and last that nothing follows."""
        found: Tensor = self.out(self.norm(hidden))
        return found


def next_nats(logits: Tensor, tokens: TowerBatch) -> tuple[Tensor, Tensor]:
    """Nats over all ends of a tower's segments, and how many ends there are."""
    wanted = cast("Tensor", tokens.following).flatten()
    total = F.cross_entropy(at_least_float32(logits.flatten(0, 1)), wanted, ignore_index=IGNORE, reduction="sum")
    return total, (wanted != IGNORE).sum()
