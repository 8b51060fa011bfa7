"""Steps of several ranks as a ratio to one process with as many threads, and their bytes on the wire; JSON out.

Ranks talk over the loopback device, whose counters are read between two runs of different lengths: run it where nothing
else does, as in a network of its own (``unshare -n sh -c 'ip link set lo up; python benchmarks/ranks.py'``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

DEMO = Path(__file__).parents[1] / "recipes" / "demo"
N_STEPS = 12
EVERY = 3
"""Steps between lines of metrics."""


def recipe(folder: Path, steps: int, shard: str) -> Path:
    """Two decoders of width 256, text frozen, on the demo's data; nothing is saved but the end."""
    spec = yaml.safe_load((DEMO / "spec.yaml").read_text())
    for tower in spec["towers"].values():
        tower["config"] |= {"dim": 256, "n_layers": 6}
    train = {"steps": steps, "batch_size": 32, "log_every": EVERY, "save_every": 1000, "tasks": ["text -> speech"]}
    told = {"name": "ranks", "spec": spec, "data": str(DEMO / "data"), "train": train, "parallel": {"shard": shard}}
    file = folder / f"{shard}-{steps}.yaml"
    file.write_text(yaml.safe_dump(told))
    return file


def sent() -> int:
    """Bytes that have gone over the loopback device."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if line.strip().startswith("lo:")).split()[9])


def run(file: Path, out: Path, n_ranks: int, n_threads: int) -> int:
    """Train, and return the bytes that went over the wire meanwhile."""
    before = sent()
    shared = os.environ | {"OMP_NUM_THREADS": str(n_threads), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29471"}
    ranks = []
    for rank in range(n_ranks):
        told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_ranks)} if n_ranks > 1 else {}
        words = [sys.executable, "-m", "zippkit", "train", str(file), "--out", str(out)]
        ranks.append(subprocess.Popen(words, env=shared | told, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    if any(rank.wait() for rank in ranks):
        raise SystemExit(f"{file.name}: {n_ranks} ranks failed")
    return sent() - before


def predicted(model: Path, n_ranks: int, shard: str) -> int:
    """Bytes of one step that the parameters say: gloo sends what it gathers n - 1 times, twice what it adds.

    Speech is trained from text, so the links into text have no gradient; in parts, they are gathered all the same.
    """
    import zippkit

    trained = [(name, p) for name, p in zippkit.load(model).model.named_parameters() if p.requires_grad]
    everything = sum(p.numel() * p.element_size() for _, p in trained)
    added = sum(p.numel() * p.element_size() for name, p in trained if not name.startswith("links.speech_to_text"))
    return (n_ranks - 1) * (2 * added + (0 if shard == "none" else everything))


def measure(folder: Path, n_ranks: int, n_threads: int, shard: str) -> dict[str, Any]:
    """Tokens a second, and bytes of one step."""
    name = f"{n_ranks}-{n_threads}-{shard}"
    long, short = folder / name, folder / f"{name}-short"
    n_bytes = run(recipe(folder, N_STEPS, shard), long, n_ranks, n_threads)
    n_bytes -= run(recipe(folder, EVERY, shard), short, n_ranks, n_threads) if n_ranks > 1 else 0
    lines = [json.loads(line) for line in (long / "metrics.jsonl").read_text().splitlines()]
    speed = statistics.median(line["tokens_per_second"] for line in lines[1:])
    found = {"ranks": n_ranks, "threads_each": n_threads, "shard": shard, "tokens_per_second": round(speed)}
    return found | (
        {"bytes_a_step": n_bytes // (N_STEPS - EVERY), "predicted": predicted(long, n_ranks, shard)}
        if n_ranks > 1
        else {}
    )


def main() -> None:
    """Measure one process and several ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shards", nargs="*", default=["trained", "none"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = [measure(folder, 1, 2, "none"), measure(folder, 1, 1, "none")]
        found += [measure(folder, n, 1, shard) for shard in arguments.shards for n in (2, 4)]
    alone = found[0]["tokens_per_second"]
    for each in found:
        each["of_one_process"] = round(each["tokens_per_second"] / alone, 2)
        if "predicted" in each:
            each["wire_over_predicted"] = round(each["bytes_a_step"] / each["predicted"], 3)
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
