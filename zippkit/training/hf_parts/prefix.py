"""A prefix: the source's tokens stand, stacked and projected, in the target's own sequence (arXiv 2402.08846)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from zippkit.training.hf_parts.link import Link
from zippkit.training.hf_parts.sequence import Slots, Tokens


class Prefix(Link):
    """A slot is made of ``stack`` neighbouring tokens of a segment, side by side; the last one ends in zeros."""

    def write(self, source: Tensor, tokens: Tokens) -> Slots:
        """The slots of a segment of states (B, S, D)."""
        k = self.settings["stack"]
        states = self.source_norm(source) * tokens.real[:, :, None]
        states = F.pad(states, (0, 0, 0, -states.shape[1] % k))
        return Slots(self.projection(states.reshape(len(states), -1, k * states.shape[2])), tokens.real[:, ::k])
