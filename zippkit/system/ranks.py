"""Which of several processes this one is, as torchrun tells by the environment; without torch."""

from __future__ import annotations

import os
from typing import NamedTuple

from zippkit.errors import ZippkitError


class Ranks(NamedTuple):
    """One process among several that do one thing together."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Its index on its machine."""

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes and prints."""
        return self.rank == 0


def ranks_of_environment() -> Ranks:
    """What torchrun says; one process by itself where it says nothing.

    Raises:
        ZippkitError: it says what cannot be.
    """
    told = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if told["RANK"] is None or told["WORLD_SIZE"] is None:
        return Ranks()
    try:
        found = Ranks(*(int(each or 0) for each in told.values()))
    except ValueError:
        found = Ranks(-1)
    if not 0 <= found.rank < found.size:
        said = ", ".join(f"{name}={value}" for name, value in told.items())
        raise ZippkitError(f"the environment says {said}; expected numbers as torchrun sets them, or none of these")
    return found
