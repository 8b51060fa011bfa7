"""Seconds of a step of beam search: hypotheses side by side in the row's cache, against a cache for each.

    python benchmarks/beams.py --out benchmarks/beams.json

`peers.yaml` behind prompts of 64 and 4,096 text tokens and 256 units of speech; a step's time is the difference of two
lengths of a segment, so that prompts and start-up fall out. Both ways in turn in one run; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch

import zippkit
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.generation.api import generate_batch
from zippkit.spec.sampling import Sampling

HERE = Path(__file__).parent
SHORT, LONG = 4, 24
"""Tokens of the two lengths."""


def composition(longest: int) -> Composition:
    """The peers' model, with room for so many tokens, and an end id that is never liked best."""
    spec = zippkit.load_spec(HERE / "peers.yaml", [f"towers.text.config.max_len={longest}"])
    zipped = zippkit.compile(spec)
    frame = zipped.graph.towers["text"].frame
    assert frame is not None
    with torch.no_grad():
        zipped.model.tower("text").get_parameter("embed_tokens.weight")[frame.end] = 0
    return zipped


def measured(zipped: Composition, batch: int, n_prompt: int, beams: int, repeats: int) -> dict[str, float]:
    numbers = torch.Generator().manual_seed(0)
    speech = torch.randint(0, 1024, (batch, 256), generator=numbers).tolist()
    text = torch.randint(3, 500, (batch, n_prompt), generator=numbers).tolist()
    rows = [[Segment("speech", s), Segment("text", t)] for s, t in zip(speech, text, strict=True)]
    kind = type(zipped.model.tower("text"))

    def seconds(shared: bool, n_tokens: int) -> float:
        kind.takes_branches = shared
        began = time.perf_counter()
        generate_batch(zipped, rows, ["text"], n_tokens, Sampling(beams=beams))
        return time.perf_counter() - began

    found: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(repeats + 1):
        for shared, times in found.items():
            step = (seconds(shared, LONG) - seconds(shared, SHORT)) / (LONG - SHORT)
            if repeat > 0:
                times.append(step)
    kind.takes_branches = True
    shared, apart = (1000 * statistics.median(found[each]) for each in (True, False))
    return {"batch": batch, "prompt": n_prompt, "beams": beams, "shared_ms": shared, "apart_ms": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 4096])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    zipped = composition(max(args.lengths) + 256)
    cases = [measured(zipped, batch, n, args.beams, args.repeats) for batch in (1, 4) for n in args.lengths]
    text = json.dumps({"threads": args.threads, "load": os.getloadavg()[0], "cases": cases}, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
