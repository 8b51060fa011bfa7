"""How cost grows with length, batch, towers and sites, against operations and bytes: docs/growth/*.svg and a table.

    OMP_NUM_THREADS=1 python benchmarks/growth.py --out benchmarks/growth.json

Widths are small, so that it runs in minutes. Times are seconds of processor time on one thread, the least of several,
so that other work on the machine counts little. Predicted is the cost of the cheapest case for each operation (of a
training step) or byte that must be read (of a decoded token), times those of each case; where measured points rise away
from it, something grows faster than it should.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from drawing import Line, Panel, draw
from on_gpu.decode import bytes_per_step

import zippkit
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.generation.api import generate_batch
from zippkit.model.meta_device import meta_model
from zippkit.report.sizes import count
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.phase import Phase
from zippkit.training.device import CPU
from zippkit.training.optimizer import build_optimizer
from zippkit.training.step import build_step

SHORT, LONG = 8, 40
"""Generated tokens, of whose costs the difference is taken."""
AXES = {
    "length": "tokens of each segment",
    "batch": "rows",
    "towers": "towers",
    "sites": "sites",
}


@dataclass(frozen=True)
class Case:
    """One point of an axis."""

    x: int
    length: int = 128
    rows: int = 8
    towers: int = 2
    sites: int = 3
    layers: int = 6


def cases(axis: str, largest: int) -> Iterator[Case]:
    """As many tokens in all for each length, as far as rows can be whole."""
    if axis == "length":
        lengths = (256, 512, 1024, 2048, 4096, 8192, 16384)
        yield from (Case(n, length=n, rows=max(1, 2048 // n), layers=2, sites=1) for n in lengths if n <= largest)
    elif axis == "batch":
        yield from (Case(n, rows=n, length=64) for n in (1, 2, 4, 8, 16, 32, 64) if n <= largest)
    elif axis == "towers":
        yield from (Case(n, towers=n) for n in range(2, 7))
    else:
        yield from (Case(n, sites=n, layers=30, length=64) for n in (1, 2, 3, 6, 10, 15, 30))


def composed(case: Case, dim: int) -> Composition:
    """Text that reads every other tower at as many sites."""
    config = {"vocab_size": 258, "dim": dim, "n_heads": 4, "max_len": 2 * case.length + 4096}
    frame = {"begin": 256, "end": 257}
    names = [f"source{i}" for i in range(case.towers - 1)]
    towers = {name: {"kind": "decoder", "config": {**config, "n_layers": 2}, "frame": frame} for name in names}
    towers["text"] = {"kind": "decoder", "config": {**config, "n_layers": case.layers}, "frame": frame, "freeze": True}
    every = case.layers // case.sites
    links = [
        {"kind": "gated_cross_attention", "from": name, "into": "text", "every": every, "source": "final"}
        for name in names
    ]
    return zippkit.compile(CompositionSpec.model_validate({"name": "grows", "towers": towers, "links": links}))


def rows(case: Case, zipped: Composition) -> list[list[Segment]]:
    ids = torch.randint(0, 256, (case.length - 2,), generator=torch.Generator().manual_seed(0)).tolist()
    given = [Segment(name, ids, loss=False) for name in zipped.spec.towers if name != "text"]
    return [[*given, Segment("text", ids)] for _ in range(case.rows)]


def least(run: Callable[[], object], repeats: int) -> float:
    """Processor seconds of the quickest call."""
    run()
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        taken.append(time.process_time() - began)
    return min(taken)


def train(case: Case, dim: int, repeats: int) -> dict[str, float]:
    """Seconds of a step for each token, and operations."""
    zipped = composed(case, dim)
    batch = zipped.collate(rows(case, zipped))
    operations = count(meta_model(zipped.spec)[0].train(), batch.to("meta"))[1]
    phase = Phase(steps=1, learning_rate=1e-3)
    model = zipped.model.train()
    step = build_step(model, build_optimizer(model, learning_rates(zipped.spec, phase), phase), phase, CPU())
    placed = batch.with_places()
    seconds = least(lambda: step(placed), repeats)
    n = batch.n_tokens
    return {"x": case.x, "seconds": seconds / n, "work": operations / n}


def decode(case: Case, dim: int, repeats: int) -> dict[str, float]:
    """Seconds of a decoded token, and bytes that it must read."""
    zipped = composed(case, dim)
    tower: Any = zipped.model.tower("text")
    with torch.no_grad():
        tower.embed_tokens.weight[257] = 0
    prompts = [row[:-1] for row in rows(case, zipped)]

    def answer(n: int) -> float:
        return least(lambda: generate_batch(zipped, prompts, ["text"], n), repeats)

    seconds = (answer(LONG) - answer(SHORT)) / (LONG - SHORT) / case.rows
    amount = bytes_per_step(zipped, case.rows, case.length, SHORT + LONG) / case.rows
    return {"x": case.x, "seconds": max(seconds, 1e-9), "work": amount}


def with_predictions(points: list[dict[str, float]]) -> list[dict[str, float]]:
    """The cheapest case's cost for its work, times each one's work."""
    rate = min(point["seconds"] / point["work"] for point in points)
    return [point | {"predicted": rate * point["work"]} for point in points]


def table(found: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    lines = [
        "| | from, to | cost of a token grew | its operations or bytes grew | measured over predicted, first to last |"
    ]
    lines.append("|---" * 5 + "|")
    for what, axes in found.items():
        for axis, points in axes.items():
            first, last = points[0], points[-1]
            over = " ".join(f"{point['seconds'] / point['predicted']:.2f}" for point in points)
            grew = f"{last['seconds'] / first['seconds']:.2f} | {last['work'] / first['work']:.2f}"
            lines.append(f"| {what}, {axis} | {first['x']:g}, {last['x']:g} | {grew} | {over} |")
    return "\n".join(lines)


def panels(axes: dict[str, list[dict[str, float]]]) -> list[Panel]:
    def line(points: list[dict[str, float]], key: str) -> list[tuple[float, float]]:
        return [(point["x"], 1e6 * point[key]) for point in points]

    return [
        Panel(
            f"us of a token, by {axis}",
            AXES[axis],
            [
                Line("measured", line(points, "seconds"), colour=0),
                Line("predicted", line(points, "predicted"), True, 0),
            ],
        )
        for axis, points in axes.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--largest", type=int, default=16384, help="no longer segments, and no more rows")
    parser.add_argument("--axes", nargs="*", choices=list(AXES), default=list(AXES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pictures", type=Path, default=Path(__file__).parents[1] / "docs" / "growth")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[dict[str, float]]]] = {"train": {}, "decode": {}}
    for what, run in (("train", train), ("decode", decode)):
        for axis in args.axes:
            points = []
            for case in cases(axis, args.largest):
                points.append(run(case, args.dim, args.repeats))
                print(what, axis, points[-1], file=sys.stderr, flush=True)
            found[what][axis] = with_predictions(points)
        draw(panels(found[what]), args.pictures / f"{what}.svg")
    print(table(found))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
