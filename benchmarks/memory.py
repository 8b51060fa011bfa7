"""Memory and time of a training step in every way of saving either, as ratios to the plain step; each in a process.

    python benchmarks/memory.py --out benchmarks/memory.json

The composition is a decoder of 49,152 ids, 576 wide and 8 layers deep, that reads a smaller one after every second
layer. Linux only: the peak is the kernel's high-water mark of resident memory (VmHWM), reset after a first step.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import zippkit
from zippkit.batch.batch import Batch, Segment
from zippkit.composition import Composition
from zippkit.model.source_states import source_states, tapped_depths
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.phase import Phase
from zippkit.training.device import CPU
from zippkit.training.optimizer import build_optimizer
from zippkit.training.parallel import World
from zippkit.training.sharding import Shards
from zippkit.training.step import build_step

WHOLE = {"logits_mib": 2**20}
"""Tables of logits as large as they like."""
WAYS: dict[str, dict[str, Any]] = {
    "plain": WHOLE,
    "4 parts (`accumulate: 4`)": WHOLE | {"accumulate": 4},
    "recomputed (`recompute: true`)": WHOLE | {"recompute": True},
    "logits in chunks (`logits_mib: 64`)": {},
    "bf16 (`precision: bf16`)": WHOLE | {"precision": "bf16"},
    "bf16 weights (`parameters: bf16` too)": WHOLE | {"precision": "bf16", "parameters": "bf16"},
    "Adafactor (`optimizer: adafactor`)": WHOLE | {"optimizer": "adafactor"},
    "text frozen": WHOLE | {"text": {"freeze": True}},
    "text frozen, in bf16 (`dtype: bf16`)": WHOLE | {"text": {"freeze": True, "dtype": "bf16"}, "precision": "bf16"},
    "text frozen, logits in chunks": {"text": {"freeze": True}},
    "speech frozen": WHOLE | {"speech": {"freeze": True}},
    "speech frozen, its states kept (`cache_sources`)": WHOLE | {"speech": {"freeze": True}, "kept": True},
    "rows of many lengths": WHOLE | {"mixed": True},
    "the same, packed (`pack: true`)": WHOLE | {"mixed": True, "shared": 2048},
    "chunks, 4 parts, recomputed, bf16": {"accumulate": 4, "recompute": True, "precision": "bf16"},
}
ROWS, SPEECH, TEXT = 8, 128, 96
"""Rows of a step, and tokens of each segment."""


def composed(text: dict[str, Any], speech: dict[str, Any]) -> Composition:
    towers = {
        "text": {"vocab_size": 49152, "dim": 576, "n_layers": 8, "n_heads": 9, "n_kv_heads": 3, "ffn_dim": 1536},
        "speech": {"vocab_size": 1026, "dim": 256, "n_layers": 6, "n_heads": 8},
    }
    frames = {"text": {"begin": 1, "end": 2}, "speech": {"begin": 1024, "end": 1025}}
    more = {"text": text, "speech": speech}
    sections = {
        name: {"kind": "decoder", "config": config, "frame": frames[name], **more[name]}
        for name, config in towers.items()
    }
    link = {"kind": "gated_cross_attention", "from": "speech", "into": "text", "every": 2, "config": {"n_heads": 9}}
    return zippkit.compile(CompositionSpec.model_validate({"name": "large", "towers": sections, "links": [link]}))


def batches(
    zipped: Composition, n_parts: int, kept: bool = False, mixed: bool = False, shared: int | None = None
) -> list[Batch]:
    """Rows whose text is a third prompt, as in chat; the same ones in any number of parts.

    Args:
        zipped: the composition.
        n_parts: of the step.
        kept: give the states of its speech, as a source cache would.
        mixed: rows are from an eighth of the length up to the whole.
        shared: most tokens of a row that several examples share.
    """
    numbers = torch.Generator().manual_seed(0)

    def ids(n: int, most: int) -> torch.Tensor:
        return torch.randint(3, most, (n,), generator=numbers)

    def row(share: float) -> list[Segment]:
        asked = Segment("text", ids(int(share * TEXT / 3), 49152), loss=False)
        heard = Segment("speech", ids(int(share * SPEECH), 1024), loss=False)
        return [asked, heard, Segment("text", ids(int(share * 2 * TEXT / 3), 49152))]

    rows = [row((i + 1) / ROWS if mixed else 1) for i in range(ROWS)]
    size = ROWS // n_parts
    parts = [zipped.collate(rows[i : i + size], 16, pack=shared) for i in range(0, ROWS, size)]
    found = [part.with_places() for part in parts]
    return [with_states(zipped, batch) for batch in found] if kept else found


def with_states(zipped: Composition, batch: Batch) -> Batch:
    """The batch with the states of its speech, as a source cache would give them."""
    model, speech = zipped.model, batch.towers["speech"]
    depths = tapped_depths(model.plan.prune(model.wanted(batch)))["speech"]
    states = source_states(model, "speech", depths, speech, batch.multimodal)
    return replace(batch, towers={**batch.towers, "speech": replace(speech, states=states)})


def memory(field: str) -> float:
    """MiB, as the kernel counts this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) / 1024


def measure(way: dict[str, Any], repeats: int) -> dict[str, float]:
    """Resident memory before a step, what a step adds at its peak, and its seconds of processor time."""
    own = {"text": way.pop("text", {}), "speech": way.pop("speech", {})}
    made, before = {key: way.pop(key) for key in ("kept", "mixed", "shared") if key in way}, memory("VmRSS")
    zipped, phase = composed(**own), Phase(steps=100, batch_size=ROWS, **way)
    model = zipped.model.train()
    shards = Shards(model, World(), narrow=phase.parameters == "bf16")
    optimizer = build_optimizer(model, learning_rates(zipped.spec, phase), phase, shards)
    step, parts = build_step(model, optimizer, phase, CPU(), shards), batches(zipped, phase.accumulate, **made)
    loss = float(step(*parts)["total"])
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    resident = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        step(*parts)
        seconds.append(time.process_time() - began)
    return {"resident": resident - before, "peak": memory("VmHWM") - resident, "seconds": min(seconds), "loss": loss}


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown; in brackets, the ratio to the plain step."""
    lines = ["| step | resident, MiB | added by a step, MiB | processor seconds |", "|---|---|---|---|"]
    plain = found["plain"]
    for name, values in found.items():
        cells = (f"{values[key]:{how}} ({values[key] / plain[key]:.2f})" for key, how in
                 (("resident", ".0f"), ("peak", ".0f"), ("seconds", ".2f")))  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", help="measure this one alone, and print JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.way:
        print(json.dumps(measure(dict(WAYS[args.way]), args.repeats)))
        return
    found = {}
    for name in WAYS:
        command = [sys.executable, __file__, "--way", name, *("--repeats", str(args.repeats))]
        said = subprocess.run([*command, "--threads", str(args.threads)], capture_output=True, text=True, check=True)
        found[name] = json.loads(said.stdout.splitlines()[-1])
        print(name, found[name], file=sys.stderr)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": args.threads,
        "torch": torch.__version__,
    }
    load = os.getloadavg()[0]
    print(table(found))
    if args.out:
        args.out.write_text(json.dumps({"machine": machine, "load": load, "ways": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
