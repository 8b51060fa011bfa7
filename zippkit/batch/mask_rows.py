"""One mask of one row, with the tokens on its axes, and how it is written as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

WIDEST = 32
"""Most source tokens of which each is labelled."""


class Token(NamedTuple):
    """One token on an axis."""

    label: str
    order: int
    segment: int


class View(NamedTuple):
    """One mask of one row: the target's tokens down, the source's tokens across."""

    target: str
    source: str
    link: str | None
    """None: the tower's own mask."""
    queries: tuple[Token, ...]
    keys: tuple[Token, ...]
    dense: Tensor
    """(n_queries, n_keys) bool."""

    @property
    def title(self) -> str:
        """Who sees whom, by which link."""
        return f"{self.target} sees {self.source} ({self.link})" if self.link else f"{self.target} sees itself"

    def lines(self) -> Iterator[str]:
        """The mask as text: ``#`` where a token may attend, ``.`` where it may not."""
        name_width = max(len(token.label) for token in self.queries)
        order_width = max(len(str(token.order)) for token in self.queries)
        labelled = len(self.keys) <= WIDEST
        cell_width = 1 + max(len(part) for key in self.keys for part in (key.label, str(key.order))) if labelled else 1
        margin = " " * (name_width + order_width + 1)
        yield self.title
        if labelled:
            yield margin + "".join(key.label.rjust(cell_width) for key in self.keys)
            yield margin + "".join(str(key.order).rjust(cell_width) for key in self.keys)
        for query, cells in zip(self.queries, self.dense.tolist(), strict=True):
            seen = "".join(("#" if cell else ".").rjust(cell_width) for cell in cells)
            gap = "" if labelled else " "
            yield f"{query.label.rjust(name_width)} {str(query.order).rjust(order_width)}{gap}{seen}"
