"""Throughput and waiting times under random arrivals: rows that come and go, against a batch at a time.

    python benchmarks/serving.py --out benchmarks/serving.json

Requests come as a Poisson process; each is a prompt of speech of random length, and asks for a random number of text
tokens. `continuous` adds each to a running generation; `batches` starts, whenever the last batch has ended, one of all
who wait, up to as many rows, and answers when the whole batch has ended; it is given its rows' lengths beforehand, so
that nothing is generated that nobody asked for. Arrivals are in real time, so that waiting is what a user would see.
Both ways serve the same requests, in turn in one run; rates are fractions of what `batches` reaches when everybody is
there from the start.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import zippkit
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.generation.api import stream

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Wish:
    """A request."""

    arrives: float
    prompt: list[Segment]
    n_tokens: int


@dataclass(frozen=True)
class Answer:
    """When a request's first token came, and its last."""

    first: float
    last: float


def composition() -> Composition:
    """The peers' model with an end id that is never liked best, so that rows end where they are told."""
    zipped = zippkit.compile(zippkit.load_spec(HERE / "peers.yaml"))
    frame = zipped.graph.towers["text"].frame
    assert frame is not None
    with torch.no_grad():
        zipped.model.tower("text").get_parameter("embed_tokens.weight")[frame.end] = 0
    return zipped


def wishes(n: int, rate: float, seed: int) -> list[Wish]:
    """Requests at so many a second; lengths are exponential, as lengths of answers tend to be."""
    numbers, at, found = random.Random(seed), 0.0, []
    for _ in range(n):
        at += numbers.expovariate(rate) if rate < float("inf") else 0.0
        units = [numbers.randrange(1024) for _ in range(numbers.randint(32, 256))]
        found.append(Wish(at, [Segment("speech", units)], min(128, 4 + int(numbers.expovariate(1 / 32)))))
    return found


def continuous(zipped: Composition, wanted: Sequence[Wish], most: int) -> list[Answer]:
    """Rows are added as they come; each is cancelled once it has what it asked for."""
    generation = stream(zipped, [], ["text"], 1 + max(wish.n_tokens for wish in wanted), max_rows=most)
    began, first, last, counts = time.perf_counter(), dict[int, float](), dict[int, float](), dict[int, int]()
    added = 0
    while len(last) < len(wanted):
        now = time.perf_counter() - began
        while added < len(wanted) and wanted[added].arrives <= now:
            generation.add(wanted[added].prompt)
            added += 1
        piece = next(generation, None)
        now = time.perf_counter() - began
        if piece is None:
            time.sleep(max(0.0, wanted[added].arrives - now))
            continue
        if piece.row in last:
            continue
        first.setdefault(piece.row, now)
        counts[piece.row] = counts.get(piece.row, 0) + 1
        if counts[piece.row] >= wanted[piece.row].n_tokens or piece.token is None:
            last[piece.row] = now
            generation.cancel(piece.row)
    return [Answer(first[row], last[row]) for row in range(len(wanted))]


def batches(zipped: Composition, wanted: Sequence[Wish], most: int) -> list[Answer]:
    """All who wait, up to ``most``, are answered together; a row that has its tokens is cancelled and waits."""
    began, answers = time.perf_counter(), list[Answer]()
    while len(answers) < len(wanted):
        now, done = time.perf_counter() - began, len(answers)
        here = [wish for wish in wanted[done : done + most] if wish.arrives <= now]
        if not here:
            time.sleep(max(0.0, wanted[done].arrives - now))
            continue
        generation = stream(zipped, [wish.prompt for wish in here], ["text"], max(wish.n_tokens for wish in here))
        counts = [0] * len(here)
        for piece in generation:
            counts[piece.row] += 1
            if counts[piece.row] >= here[piece.row].n_tokens:
                generation.cancel(piece.row)
        now = time.perf_counter() - began
        answers += [Answer(now, now) for _ in here]
    return answers


def measured(wanted: Sequence[Wish], answers: Sequence[Answer]) -> dict[str, float]:
    waits = sorted(answer.last - wish.arrives for wish, answer in zip(wanted, answers, strict=True))
    firsts = sorted(answer.first - wish.arrives for wish, answer in zip(wanted, answers, strict=True))
    return {
        "tokens_per_second": sum(wish.n_tokens for wish in wanted) / max(answer.last for answer in answers),
        "first_token_median_s": statistics.median(firsts),
        "answer_median_s": statistics.median(waits),
        "answer_p90_s": waits[int(0.9 * (len(waits) - 1))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--rows", type=int, default=8, help="rows side by side")
    parser.add_argument("--loads", type=float, nargs="*", default=[0.5, 0.9])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    zipped = composition()
    ways: dict[str, Callable[[Composition, Sequence[Wish], int], list[Answer]]] = {
        "batches": batches,
        "continuous": continuous,
    }
    for serve in ways.values():
        serve(zipped, wishes(args.rows, float("inf"), 1), args.rows)
    at_once = wishes(args.requests, float("inf"), args.seed)
    full = {name: measured(at_once, serve(zipped, at_once, args.rows)) for name, serve in ways.items()}
    mean = statistics.mean(wish.n_tokens for wish in at_once)
    loads = {}
    for load in args.loads:
        wanted = wishes(args.requests, load * full["batches"]["tokens_per_second"] / mean, args.seed)
        loads[str(load)] = {name: measured(wanted, serve(zipped, wanted, args.rows)) for name, serve in ways.items()}
    result = {
        "threads": args.threads, "rows": args.rows, "requests": args.requests, "seed": args.seed,
        "machine_load": os.getloadavg()[0], "all_at_once": full, "arrivals": loads,
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
