"""Padding, and a step's time, with a row for each example and with rows that examples share; JSON out."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import zippkit
from zippkit.batch.batch import Batch, Segment
from zippkit.composition import Composition
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.phase import Phase
from zippkit.training.batch_order import POOL
from zippkit.training.device import backend
from zippkit.training.optimizer import build_optimizer
from zippkit.training.step import build_step

SHAPES = {"demo": ((30, 160), 8), "LibriSpeech": ((100, 850), 14)}
"""Units of speech, between two numbers, and how many of them make an id of text."""
Example = list[Segment]


def examples(shape: str, n: int) -> list[Example]:
    """Speech of some length, and its text, as far as ids of the two towers go."""
    (low, high), pace = SHAPES[shape]
    random = np.random.default_rng(0)
    # Most of LibriSpeech is near the longest.
    lengths = (low + (high - low) * random.beta(2.5, 1.2, n)).astype(int)
    return [
        [
            Segment("speech", random.integers(0, 900, m), loss=False),
            Segment("text", random.integers(3, 200, max(1, int(m / pace * random.uniform(0.8, 1.2))))),
        ]
        for m in lengths
    ]


def in_batches(given: Sequence[Example], size: int) -> list[list[Example]]:
    """As training draws them: of similar lengths."""
    found: list[list[Example]] = []
    for start in range(0, len(given), POOL * size):
        pool = sorted(given[start : start + POOL * size], key=lambda row: len(row[0].tokens))
        found += [pool[i : i + size] for i in range(0, len(pool), size)]
    return found


def waste(batches: Sequence[Batch]) -> float:
    """The part of all places that is padding."""
    places = sum(tower.order.numel() for batch in batches for tower in batch.towers.values())
    return round(1 - sum(batch.n_tokens for batch in batches) / places, 3)


def microseconds(zipped: Composition, batches: Sequence[Batch], device: str) -> float:
    """Of training on a token that is not padding."""
    phase, on = Phase(steps=1, learning_rate=1e-4), backend(device)
    zipped.model.to(on.device()).train()
    optimizer = build_optimizer(zipped.model, learning_rates(zipped.spec, phase), phase)
    step = build_step(zipped.model, optimizer, phase, on)
    moved = [batch.to(on.device()) for batch in batches]
    float(step(moved[0])["total"])
    began = time.perf_counter()
    last = [step(batch) for batch in moved][-1]
    float(last["total"])
    return round(1e6 * (time.perf_counter() - began) / sum(batch.n_tokens for batch in batches), 2)


def main() -> None:
    """Print both for each shape, and for a few lengths of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, default=Path(__file__).parent / "peers.yaml")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6, help="timed steps, 0 for none")
    args = parser.parse_args()
    zipped = zippkit.compile(zippkit.load_spec(args.spec))
    found: dict[str, Any] = {}
    for shape in SHAPES:
        drawn = in_batches(examples(shape, POOL * args.batch), args.batch)
        some = [drawn[i * len(drawn) // max(1, args.steps)] for i in range(args.steps)]
        for pack in (None, 1024, 2048, 4096):
            figures: dict[str, float] = {"padding": waste([zipped.collate(rows, 16, pack=pack) for rows in drawn])}
            if args.steps:
                timed = [zipped.collate(rows, 16, pack=pack) for rows in some]
                figures["us a token"] = microseconds(zipped, timed, args.device)
            found[f"{shape}, {f'rows of {pack}' if pack else 'a row each'}"] = figures
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
