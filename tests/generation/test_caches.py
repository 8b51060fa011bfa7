"""Caches that grow while rows are generated, and those of towers that know of no growth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor

from helpers.compositions import link, make, tower
from helpers.greedy import greedy, sharp, two
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.generation.api import generate_batch, stream
from zippkit.model import kv_cache
from zippkit.model.kv_cache import BLOCK, KeyValues

ROWS = [[Segment("speech", [1, 2, 3, 4])], [Segment("text", [3])], []]


def test_a_large_limit_costs_nothing_before_it_is_used() -> None:
    batch = stream(two(), ROWS, ["text", "speech"], 100_000).batch
    assert batch.capacity == {"text": BLOCK, "speech": BLOCK}
    assert batch.decoding.caches["text"].keys[0].shape[2] == BLOCK


@pytest.mark.parametrize("block", [1, 2, 5])
def test_answers_do_not_depend_on_where_a_cache_grows(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every few tokens here, with rows that rest meanwhile, and places that links insert several at a time."""
    towers = {"speech": tower(2, 12, 7, {"tied": False}), "text": tower(2, 8, 8, {"tied": False})}
    prefix = link("speech", "text", kind="prefix", projection={"depth": 1}, config={"stack": 2})
    inserted = sharp(make(towers, [prefix]))
    wanted = [["text", "speech", "text"], ["speech", "text"], ["text", "text"]]
    expected = [
        [greedy(zipped, row, names, 6) for row, names in zip(ROWS, wanted, strict=True)] for zipped in (two(), inserted)
    ]
    monkeypatch.setattr(kv_cache, "BLOCK", block)
    assert [generate_batch(zipped, ROWS, wanted, 6) for zipped in (two(), inserted)] == expected


@dataclass
class Foreign:
    """A cache of which nothing is known."""

    held: KeyValues


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> tuple[Composition, list[int]]:
    """Text's tower keeps its cache in a way of its own; and how many slots it was asked for."""
    zipped, asked = two(), list[int]()
    module: Any = zipped.model.tower("text")
    start, new_cache = module.start, module.new_cache

    def made(n_rows: int, n_slots: int) -> Foreign:
        asked.append(n_slots)
        return Foreign(new_cache(n_rows, n_slots))

    def started(inputs: Any, mask: Tensor | None, cache: Foreign | None = None) -> Any:
        return start(inputs, mask, cache and cache.held)

    monkeypatch.setattr(module, "new_cache", made)
    monkeypatch.setattr(module, "start", started)
    monkeypatch.setattr(module, "reorder_cache", lambda cache, rows: Foreign(cache.held.picked(rows)))
    return zipped, asked


def test_a_cache_that_cannot_grow_is_made_as_large_as_it_can_come_to_be(
    foreign: tuple[Composition, list[int]],
) -> None:
    zipped, asked = foreign
    expected = [greedy(zipped, row, ["text"], 70) for row in ROWS]
    assert generate_batch(zipped, ROWS, ["text"], 70) == expected
    assert asked == [BLOCK, 72 + 3]
