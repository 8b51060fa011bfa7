"""zippkit beside its peers on the same work, in one run: who trains and decodes how fast, in how much memory.

    python benchmarks/peers/compare.py --results docs/results.md

Each peer has an environment of its own, of the packages in `pins/` (built once, in runs/peers/), and a process of its
own. They take turns, so that whatever else the machine does falls on all: a round asks each for one training step and
one answer, and who begins changes from round to round. Told are medians, and medians of each round's ratio to zippkit.
`work.py` defines the work.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LEAST = 5
"""Rounds of which medians are told."""


class Contender(NamedTuple):
    """A column of the table."""

    label: str
    script: str
    pins: str
    """Its environment, and the file of that name in `pins/`."""
    arguments: Sequence[str] = ()


PEERS = {
    "zippkit": Contender("zippkit", "with_zippkit.py", "zippkit"),
    "zippkit_compiled": Contender("zippkit, `compile`", "with_zippkit.py", "zippkit", ("compiled",)),
    "torchtune": Contender("torchtune", "with_torchtune.py", "torchtune"),
    "transformers": Contender("transformers' mllama", "with_transformers.py", "transformers"),
    "hand_written": Contender("hand-written", "hand_written.py", "hand_written"),
}
N_TOKENS = {"train": 16 * 320, "train_bf16": 16 * 320, "decode_b1": 64, "decode_b8": 8 * 64}
LABELS = {
    "train": "train, tokens/s",
    "train_bf16": "train in bf16, tokens/s",
    "decode_b1": "decode, batch 1, tokens/s",
    "decode_b8": "decode, batch 8, tokens/s",
}
BEGIN, END = "<!-- peers -->", "<!-- end peers -->"


def environment(name: str, folder: Path) -> Path:
    """The Python of an environment, which is built where it is not there or its pins have changed."""
    python, done, pins = folder / name / "bin" / "python", folder / name / "installed", HERE / "pins" / f"{name}.txt"
    if not done.exists() or done.read_text() != pins.read_text():
        print(f"{name}: building {folder / name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder / name], check=True)
        install = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-c",
            ROOT / "constraints.txt",
        ]
        subprocess.run([*install, "-r", pins, *(["-e", ROOT] if name == "zippkit" else [])], check=True)
        done.write_text(pins.read_text())
    return python


class Asked(Protocol):
    """A peer that waits to be asked."""

    name: str

    def ask(self, what: str) -> float:
        """Seconds of a piece of work, or a figure."""


class Process:
    """A peer in a process of its own."""

    def __init__(self, name: str, python: Path, n_threads: int) -> None:
        self.name = name
        quiet = {"OMP_NUM_THREADS": str(n_threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [python, HERE / PEERS[name].script, str(n_threads), *PEERS[name].arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **quiet},
        )

    def ask(self, what: str) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended while it was asked for {what}")
        return float(json.loads(line))


def measure(peers: Sequence[Asked], n_rounds: int) -> dict[str, Any]:
    """Seconds of each round, by peer and work, and each peer's memory and operations."""
    first = peers[0]
    found: dict[str, Any] = {peer.name: _first_of(peer) for peer in peers}
    rates: dict[str, list[float]] = {"gemm": [], "gemv": []}
    seconds: dict[str, dict[str, list[float]]] = {peer.name: {work: [] for work in LABELS} for peer in peers}
    for turn in range(n_rounds):
        rates["gemm"].append(20 * 2 * 1024**3 / first.ask("gemm"))
        rates["gemv"].append(20 * 4 * 4096 * 2048 / first.ask("gemv"))
        order = [peers[(i + turn) % len(peers)] for i in range(len(peers))]
        for work in LABELS:
            for peer in order:
                seconds[peer.name][work].append(peer.ask(work))
        print(f"round {turn + 1} of {n_rounds}", file=sys.stderr)
    for name, own in seconds.items():
        found[name] |= _told(found[name], own, seconds[first.name], rates)
    return {
        "gemm_gflops": statistics.median(rates["gemm"]) / 1e9,
        "gemv_gb": statistics.median(rates["gemv"]) / 1e9,
        "peers": found,
    }


def _first_of(peer: Asked) -> dict[str, float]:
    """Memory before it has decoded, so that it is that of training; then each piece of work once, to warm up."""
    peer.ask("train")
    peer.ask("train")
    found = {key: peer.ask(key) for key in ("memory", "parameters", "flops", "decode_bytes")}
    for work in LABELS:
        peer.ask(work)
    return found


def _told(
    found: Mapping[str, float],
    own: Mapping[str, list[float]],
    first: Mapping[str, list[float]],
    rates: Mapping[str, list[float]],
) -> dict[str, Any]:
    def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
        return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))

    gemm = (found["flops"] / t / rate for t, rate in zip(own["train"], rates["gemm"], strict=True))
    read = 64 * found["decode_bytes"]
    gemv = (read / t / rate for t, rate in zip(own["decode_b1"], rates["gemv"], strict=True))
    return {
        "seconds": own,
        "tokens_per_second": {work: N_TOKENS[work] / statistics.median(own[work]) for work in LABELS},
        "speed_against_zippkit": {work: ratio(own[work], first[work]) for work in LABELS},
        "bf16_time": ratio(own["train"], own["train_bf16"]),
        "share_of_gemm": statistics.median(gemm),
        "share_of_gemv": statistics.median(gemv),
    }


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    peers = result["peers"]
    heads = [PEERS[name].label for name in peers]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(peers) + 1) + "|"]

    def row(label: str, cells: Sequence[str]) -> None:
        lines.append(f"| {label} | {' | '.join(cells)} |")

    for work, label in LABELS.items():
        own = [(p["tokens_per_second"][work], p["speed_against_zippkit"][work]) for p in peers.values()]
        row(label, [f"{rate:.0f}" + (f" ({speed:.2f})" if i else "") for i, (rate, speed) in enumerate(own)])
    row("bf16, time of its own fp32 step", [f"{each['bf16_time']:.2f}" for each in peers.values()])
    row("train, share of the GEMM rate", [f"{each['share_of_gemm']:.2f}" for each in peers.values()])
    row("decode, batch 1, share of the GEMV rate", [f"{each['share_of_gemv']:.2f}" for each in peers.values()])
    row("peak memory of training, MiB", [f"{each['memory']:.0f}" for each in peers.values()])
    row("GFLOP a step", [f"{each['flops'] / 1e9:.1f}" for each in peers.values()])
    return "\n".join(lines)


def section(result: Mapping[str, Any]) -> str:
    """The table with how it came about, for docs/results.md."""
    machine = result["machine"]
    how = f"`python benchmarks/peers/compare.py --rounds {machine['rounds']}`"
    when = f"{machine['date']}, commit {machine['commit']}"
    where = f"{machine['threads']} threads of {machine['processor']}, load {machine['load']:.1f} when it began"
    rates = f"GEMM {result['gemm_gflops']:.0f} GFLOP/s, GEMV {result['gemv_gb']:.1f} GB/s"
    told = f"{how}, {when}: {where};\n{', '.join(machine['versions'])}. {rates}."
    return f"{told} Medians; in brackets the median of each round's speed over zippkit's.\n\n{table(result)}"


def write_results(file: Path, told: str) -> None:
    """Put the section between the two marks of a page."""
    page = file.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise SystemExit(f"{file}: expected the lines {BEGIN} and {END}, once each, around what is written")
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    file.write_text(between.sub(lambda _: f"{BEGIN}\n{told}\n{END}", page), encoding="utf-8")


def machine(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """What the numbers depend on."""
    commit = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    pins = sorted({line for name in names for line in _lines(HERE / "pins" / f"{PEERS[name].pins}.txt")})
    told = ("torch==", "torchtune==", "transformers==")
    return {
        "processor": _processor(),
        "threads": args.threads,
        "load": os.getloadavg()[0],
        "rounds": args.rounds,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "versions": [line.replace("==", " ") for line in pins if line.startswith(told)],
    }


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return f"{len(models)} x {models[0]}" if models else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(PEERS)[1:]
    parser.add_argument("--peers", nargs="*", default=names, choices=names)
    parser.add_argument("--rounds", type=int, default=9, help=f"at least {LEAST}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environments", type=Path, default=ROOT / "runs" / "peers")
    parser.add_argument("--here", action="store_true", help="run zippkit in this Python, as it is installed here")
    parser.add_argument("--out", type=Path, help="a JSON file, of every round")
    parser.add_argument("--results", type=Path, help=f"a page in which the table is put between {BEGIN} and {END}")
    args = parser.parse_args()
    if args.rounds < LEAST:
        parser.error(f"--rounds {args.rounds}: a median of fewer than {LEAST} says little")
    chosen = ["zippkit", *args.peers]
    pythons = {
        name: Path(sys.executable)
        if PEERS[name].pins == "zippkit" and args.here
        else environment(PEERS[name].pins, args.environments)
        for name in chosen
    }
    if "zippkit_compiled" in chosen and not _can_compile(pythons["zippkit"]):
        pythons.pop("zippkit_compiled")
    told = machine(args, list(pythons))
    result = measure([Process(name, python, args.threads) for name, python in pythons.items()], args.rounds)
    result["machine"] = told
    print(section(result))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.results:
        write_results(args.results, section(result))


def _can_compile(python: Path) -> bool:
    """Whether the zippkit of an environment compiles decoding."""
    asks = "import inspect, zippkit.generation.api as api; print(inspect.signature(api.generate_batch))"
    said = subprocess.run([python, "-c", asks], capture_output=True, text=True, check=False, env={**os.environ})
    return "compile:" in said.stdout


if __name__ == "__main__":
    main()
