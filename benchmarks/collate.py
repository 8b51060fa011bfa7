"""Tokens a second that become a batch, on rows of several shapes; JSON out. See README.md here."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zippkit.batch.batch import Segment
from zippkit.batch.collate import collate
from zippkit.spec.kinds import Frame, TowerConfig

TOWERS = {
    "text": TowerConfig(dim=4, n_layers=1, vocab_size=49_152, frame=Frame(begin=1, end=2)),
    "speech": TowerConfig(dim=4, n_layers=1, vocab_size=1026, frame=Frame(begin=1024, end=1025)),
}
Rows = list[list[Segment]]


def pairs(n_rows: int, speech: tuple[int, int], text: tuple[int, int], random: np.random.Generator) -> Rows:
    """Rows of speech and its text, each of some length between two."""
    return [
        [
            Segment("speech", random.integers(0, 1000, random.integers(*speech)), loss=False),
            Segment("text", random.integers(3, 49_000, random.integers(*text))),
        ]
        for _ in range(n_rows)
    ]


def stories(n_rows: int, n_segments: int, length: int, random: np.random.Generator) -> Rows:
    """Rows of many segments, text and speech by turns."""
    sizes = {"text": 49_000, "speech": 1000}
    names = ["text", "speech"] * (n_segments // 2)
    return [[Segment(name, random.integers(3, sizes[name], length)) for name in names] for _ in range(n_rows)]


def shapes() -> dict[str, Rows]:
    """What is collated: rows of the demo's lengths, LibriSpeech's at 50 units a second, and stories with sounds."""
    random = np.random.default_rng(0)
    return {
        "demo: 32 rows of 90 units and 15 letters": pairs(32, (60, 120), (10, 20), random),
        "LibriSpeech: 32 rows of 615 units and 45 words' pieces": pairs(32, (200, 850), (15, 70), random),
        "stories: 8 rows of 64 segments of 128": stories(8, 64, 128, random),
        "one row of 64 segments of 512": stories(1, 64, 512, random),
    }


def rate(make: Callable[..., Any], rows: Rows, seconds: float) -> float:
    """Tokens a second, frames counted: of the fastest of as many batches as fit in the time."""
    n_tokens = sum(len(segment.tokens) + 2 for row in rows for segment in row)
    make(rows, TOWERS, 16)
    times, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        make(rows, TOWERS, 16)
        times.append(time.perf_counter() - began)
    return n_tokens / min(times)


def main() -> None:
    """Print the rates, and those of the loop over tokens that tests compare with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from helpers.naive_collate import collate as naive

    found = {}
    for name, rows in shapes().items():
        loop, arrays = rate(naive, rows, args.seconds), rate(collate, rows, args.seconds)
        found[name] = {"token by token": round(loop), "arrays": round(arrays), "times": round(arrays / loop, 1)}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
