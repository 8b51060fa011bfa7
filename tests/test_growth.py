"""How the work of a spec grows with its towers and links: counted in calls of functions, since times prove nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import islice, permutations
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import yaml

import zippkit
from helpers.compositions import link, tower
from zippkit.batch.batch import Segment
from zippkit.loading import load_spec
from zippkit.plan.diagram.figure import svg
from zippkit.plan.graph import build_graph
from zippkit.plan.parts import parts
from zippkit.plan.plan import Wanted, build_plan
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.part_kinds import frozen_parts

pytestmark = pytest.mark.slow

TIMES = 4
SMALL, LARGE = 8, 8 * TIMES
"""Towers; each has so many links that their number grows as that of the towers does."""
LINKS_EACH = 4
ROW = ("t0", "t1", "t2")


def wide(n_towers: int) -> dict[str, Any]:
    """A spec of so many towers; whichever two are linked, it is in both directions or in one."""
    pairs = permutations(range(n_towers), 2)
    every = max(1, n_towers * (n_towers - 1) // (n_towers * LINKS_EACH))
    ends = list(islice(pairs, 0, None, every))[: n_towers * LINKS_EACH]
    links = [link(f"t{a}", f"t{b}", every=2, projection={"depth": 1}) for a, b in ends]
    return {"name": "wide", "towers": {f"t{i}": tower(freeze=i % 2 == 0) for i in range(n_towers)}, "links": links}


def n_calls(run: Callable[[], object]) -> int:
    """Calls of functions, those of built-in ones and every step of a generator among them."""
    n = 0

    def called(frame: FrameType, event: str, arg: object) -> None:
        nonlocal n
        n += event in ("call", "c_call")

    run()  # What is imported or kept at the first time is not counted.
    before = sys.getprofile()
    sys.setprofile(called)
    try:
        run()
    finally:
        sys.setprofile(before)
    return n


def compiled(spec: CompositionSpec) -> zippkit.Composition:
    return zippkit.compile(spec, device="meta")


def checked(data: dict[str, Any], folder: Path) -> Callable[[], object]:
    file = folder / f"{len(data['towers'])}.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return lambda: load_spec(file)


def planned(data: dict[str, Any]) -> object:
    spec = CompositionSpec.model_validate(data)
    graph = build_graph(spec)
    plan = build_plan(graph)
    sees = {(site.target, site.source) for site in graph.sites}
    pruned = plan.prune(Wanted(heads=set(spec.towers), sees=sees))
    return str(pruned), pruned.gradient_free(lambda op: op.tower in ROW)


@pytest.mark.parametrize("what", ["check", "plan", "parts", "build", "a step"])
def test_the_work_grows_as_the_spec_does(what: str, tmp_path: Path) -> None:
    def work(n_towers: int) -> Callable[[], object]:
        data = wide(n_towers)
        if what == "check":
            return checked(data, tmp_path)
        if what == "plan":
            return lambda: planned(data)
        spec = CompositionSpec.model_validate(data)
        if what == "parts":
            return lambda: (parts(spec), frozen_parts(spec))
        if what == "build":
            return lambda: compiled(spec)
        zipped = zippkit.compile(spec)
        batch = zipped.collate([[Segment(name, [1, 2, 3]) for name in ROW]])
        return lambda: (str(zipped.masks(batch)), zipped.loss(zipped.model(batch), batch)["total"].backward())

    small, large = n_calls(work(SMALL)), n_calls(work(LARGE))
    # Only the order grows by its logarithm.
    assert large <= 1.15 * TIMES * small, (small, large)


def test_a_figure_costs_what_it_draws() -> None:
    """An arrow crosses all columns between its ends: a wide figure has more lines than links."""

    def drawn(n_towers: int) -> tuple[int, int]:
        spec = CompositionSpec.model_validate(wide(n_towers))
        graph = build_graph(spec)
        return n_calls(lambda: svg(spec, graph)), len(svg(spec, graph))

    (small, small_figure), (large, large_figure) = drawn(SMALL), drawn(LARGE)
    assert large / small <= large_figure / small_figure


def test_what_each_pair_of_towers_needs_is_asked_once() -> None:
    """Rows of many towers have as many pairs of them as the square, and no more work than that."""

    def collated(n_towers: int) -> int:
        zipped = compiled(CompositionSpec.model_validate(wide(n_towers)))
        row = [Segment(f"t{i}", [1, 2, 3]) for i in range(n_towers)]
        with torch.device("cpu"):
            return n_calls(lambda: zipped.collate([row]))

    assert collated(LARGE) <= TIMES**2 * collated(SMALL)
