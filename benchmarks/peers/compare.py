"""zippkit beside its peers on the same work, in one run: who trains and decodes how fast, in how much memory.

    python benchmarks/peers/compare.py --out benchmarks/peers.json

Each peer has an environment of its own (built once, in runs/peers/) and a process of its own. They take turns, so that
whatever else the machine does falls on all: a round asks each for one training step and one answer, and who begins
changes from round to round. Told are medians, and medians of each round's ratio to zippkit. `work.py` defines the work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGES = {
    "zippkit": ("with_zippkit.py", ["-e", str(ROOT)]),
    "torchtune": ("with_torchtune.py", ["torchtune==0.6.1", "torchao==0.14.1"]),
    "transformers": ("with_transformers.py", ["transformers"]),
    "hand_written": ("hand_written.py", ["numpy"]),
}
"""Each peer's script, and what its environment holds besides torch; other versions are in constraints.txt."""
WORK = ("train", "train_bf16", "decode_b1", "decode_b8")
N_TOKENS = {"train": 16 * 320, "train_bf16": 16 * 320, "decode_b1": 64, "decode_b8": 8 * 64}
LABELS = {
    "train": "train, tokens/s",
    "train_bf16": "train in bf16, tokens/s",
    "decode_b1": "decode, batch 1, tokens/s",
    "decode_b8": "decode, batch 8, tokens/s",
}


def environment(name: str, packages: Sequence[str], folder: Path) -> Path:
    """The Python of a peer's environment, which is built if it is not there."""
    python = folder / name / "bin" / "python"
    done = folder / name / "installed"
    if not done.exists():
        print(f"{name}: building {folder / name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", "torch", *packages]
        subprocess.run(install, check=True)
        done.touch()
    return python


class Process:
    """A peer that waits to be asked."""

    def __init__(self, name: str, python: Path, n_threads: int) -> None:
        self.name = name
        quiet = {"OMP_NUM_THREADS": str(n_threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [python, HERE / PACKAGES[name][0], str(n_threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **quiet},
        )

    def ask(self, what: str) -> float:
        """Seconds of a piece of work, or a figure."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended while it was asked for {what}")
        return float(json.loads(line))


def measure(peers: Sequence[Process], n_rounds: int) -> dict[str, Any]:
    """Seconds of each round, by peer and work, and each peer's memory and operations."""
    first = peers[0]
    found: dict[str, Any] = {peer.name: {} for peer in peers}
    for peer in peers:
        # Before it has decoded, so that memory is that of training.
        peer.ask("train")
        peer.ask("train")
        found[peer.name] |= {"memory_mib": peer.ask("memory"), "trained": peer.ask("parameters")}
        found[peer.name]["flops"] = peer.ask("flops")
        for work in WORK:
            peer.ask(work)
    gemm: list[float] = []
    seconds: dict[str, dict[str, list[float]]] = {peer.name: {work: [] for work in WORK} for peer in peers}
    for turn in range(n_rounds):
        gemm.append(20 * 2 * 1024**3 / first.ask("gemm"))
        order = [peers[(i + turn) % len(peers)] for i in range(len(peers))]
        for work in WORK:
            for peer in order:
                seconds[peer.name][work].append(peer.ask(work))
        print(f"round {turn + 1} of {n_rounds}", file=sys.stderr)
    for peer in peers:
        own = seconds[peer.name]
        found[peer.name] |= {
            "seconds": own,
            "tokens_per_second": {work: N_TOKENS[work] / statistics.median(own[work]) for work in WORK},
            "speed_against_zippkit": {
                work: statistics.median(b / a for a, b in zip(own[work], seconds[first.name][work], strict=True))
                for work in WORK
            },
            "share_of_gemm": statistics.median(
                found[peer.name]["flops"] / t / rate for t, rate in zip(own["train"], gemm, strict=True)
            ),
        }
    return {"gemm_gflops": statistics.median(gemm) / 1e9, "peers": found}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    peers = result["peers"]
    lines = [f"| | {' | '.join(name.replace('_', '-') for name in peers)} |", "|---" * (len(peers) + 1) + "|"]
    for work in WORK:
        cells = [
            f"{each['tokens_per_second'][work]:.0f} ({each['speed_against_zippkit'][work]:.2f})"
            for each in peers.values()
        ]
        lines.append(f"| {LABELS[work]} (speed over zippkit's) | {' | '.join(cells)} |")
    lines.append(
        "| share of the GEMM rate | " + " | ".join(f"{each['share_of_gemm']:.2f}" for each in peers.values()) + " |"
    )
    lines.append(
        "| peak memory of training, MiB | " + " | ".join(f"{each['memory_mib']:.0f}" for each in peers.values()) + " |"
    )
    lines.append("| GFLOP a step | " + " | ".join(f"{each['flops'] / 1e9:.1f}" for each in peers.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="*", default=list(PACKAGES)[1:], choices=list(PACKAGES)[1:])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environments", type=Path, default=ROOT / "runs" / "peers")
    parser.add_argument("--here", action="store_true", help="run zippkit in this Python, as it is installed here")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    pythons = {
        name: Path(sys.executable)
        if name == "zippkit" and args.here
        else environment(name, PACKAGES[name][1], args.environments)
        for name in ("zippkit", *args.peers)
    }
    result = measure([Process(name, python, args.threads) for name, python in pythons.items()], args.rounds)
    result["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "threads": args.threads,
        "load": os.getloadavg()[0],
        "rounds": args.rounds,
    }
    print(table(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
