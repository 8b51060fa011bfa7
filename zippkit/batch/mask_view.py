"""Masks to look at: who sees whom in a batch, as text or as a picture, with the tokens written on both axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from zippkit.batch.batch import Batch, TowerBatch
from zippkit.batch.describe import describe_cross, describe_self
from zippkit.batch.mask_blocks import block_picture
from zippkit.batch.mask_rows import WIDEST, Token, View
from zippkit.batch.staircase import Staircase
from zippkit.errors import ZippkitError, did_you_mean
from zippkit.plan.graph import Graph
from zippkit.spec.kinds import TowerConfig
from zippkit.system.extras import require
from zippkit.system.files import appearing, write_text


@dataclass(frozen=True)
class Masks:
    """Every mask of a batch: each tower's own, and each link's staircase."""

    towers: dict[str, Staircase]
    links: dict[str, Staircase]
    ends: dict[str, tuple[str, str]]
    """Source and target of each link."""
    tokens: dict[str, tuple[tuple[Token, ...], ...]]
    """For each tower, the tokens of each row, without padding."""

    def dense(self, name: str) -> Tensor:
        """(B, T, S) bool mask of a tower or of a link; the tower's where both have that name.

        Raises:
            ZippkitError: no such tower or link in this batch.
        """
        masks = self.links | self.towers
        if name not in masks:
            raise ZippkitError(f"this batch has no mask called {name!r}{did_you_mean(name, masks)}")
        return masks[name].dense()

    def views(self, row: int = 0) -> Iterator[View]:
        """The masks in which a row has queries and keys: the towers' own first, then the links', in spec order."""
        own = [(tower, tower, None, mask) for tower, mask in self.towers.items()]
        cross = [(self.ends[link][1], self.ends[link][0], link, mask) for link, mask in self.links.items()]
        for target, source, link, mask in [*own, *cross]:
            queries, keys = self.tokens[target][row], self.tokens[source][row]
            if queries and keys:
                yield View(target, source, link, queries, keys, mask.dense()[row, : len(queries), : len(keys)])

    def text(self, row: int = 0) -> str:
        """The masks of one row as text."""
        return "\n\n".join("\n".join(view.lines()) for view in self.views(row))

    def __str__(self) -> str:
        return self.text()

    def save(self, path: str | Path, row: int = 0, by: Literal["token", "segment"] | None = None) -> None:
        """Draw the masks of one row, targets down and sources across.

        Args:
            path: ends in .svg or .png.
            row: of the batch.
            by: what a square stands for, a pair of tokens or of segments; left out, segments in an .svg whose tokens
                are too many to be labelled.

        Raises:
            ZippkitError: neither .svg nor .png, segments as .png, or a path that cannot be written.
        """
        path, views = Path(path), list(self.views(row))
        if path.suffix not in (".svg", ".png"):
            raise ZippkitError(f"{path}: a picture of masks ends in .svg or .png, got {path.suffix or 'no suffix'!r}")
        many = any(len(view.keys) > WIDEST for view in views)
        if by == "segment" or (by is None and many and path.suffix == ".svg"):
            if path.suffix != ".svg":
                raise ZippkitError(f"{path}: segments are drawn as .svg; expected {path.with_suffix('.svg')}")
            write_text(path, block_picture(views, list(self.towers)))
            return
        require("matplotlib")
        from zippkit.batch.mask_picture import save_picture  # matplotlib takes a while

        with appearing(path) as new:
            save_picture(views, list(self.towers), new)


def mask_views(graph: Graph, batch: Batch, names: Mapping[str, Callable[[int], str]] | None = None) -> Masks:
    """Describe every mask of a batch.

    Args:
        graph: of the composition.
        batch: what `zippkit.batch.collate.collate` gave.
        names: for each tower, what a token id is called; its number if left out. Begin and end are ``<b>`` and ``<e>``.
    """
    present = {name: batch.towers[name] for name in graph.towers if name in batch.towers}
    ends = {site.link: (site.source, site.target) for site in graph.sites if {site.source, site.target} <= set(present)}
    naming = {name: (names or {}).get(name, str) for name in present}
    return Masks(
        towers={name: describe_self(tower, graph.towers[name].causal) for name, tower in present.items()},
        links={link: describe_cross(present[target], present[source]) for link, (source, target) in ends.items()},
        ends=ends,
        tokens={name: tuple(_tokens(tower, graph.towers[name], naming[name])) for name, tower in present.items()},
    )


def _tokens(tower: TowerBatch, config: TowerConfig, name: Callable[[int], str]) -> Iterator[tuple[Token, ...]]:
    frame = {config.frame.begin: "<b>", config.frame.end: "<e>"} if config.frame else {}
    columns = (tower.tokens.tolist(), tower.order.tolist(), tower.segment.tolist())
    for tokens, orders, segments in zip(*columns, strict=True):
        row = (
            Token(_printable(frame.get(i) or name(i)), order, segment)
            for i, order, segment in zip(tokens, orders, segments, strict=True)
        )
        yield tuple(token for token in row if token.order >= 0)


def _printable(label: str) -> str:
    """Line breaks and the like, which tokenizers have plenty of, as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in label) or "''"
