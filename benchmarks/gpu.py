"""Everything that one GPU can show: the cuda tests, training, attention and decoding against the device's limits.

    make gpu                        # all parts, each under ten minutes: runs/gpu.json, and a table
    make gpu PART=train
    python benchmarks/gpu.py --toy  # the same code at a toy size on a CPU

Each part runs in a process of its own; one that fails is told, and the others run. Without a GPU it says so and ends.
Needs a torch that sees the GPU, zippkit, and pytest (README.md here).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

try:
    import torch
    from on_gpu.attention import attention
    from on_gpu.decode import decode
    from on_gpu.place import Place, Row, rates
    from on_gpu.train import train
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}; benchmarks/README.md, `make gpu`, says what this Python needs") from None

ROOT = Path(__file__).parents[1]
LONGEST = 600
"""Seconds of a part."""
MEASURED = {"train": train, "attention": attention, "decode": decode}
PARTS = ("tests", *MEASURED)
TESTS = [
    sys.executable,
    "-m",
    "pytest",
    "-m",
    "cuda",
    "-p",
    "no:cacheprovider",
    "-o",
    "addopts=--import-mode=importlib",
]


def tests(command: Iterable[str] = TESTS) -> Iterator[Row]:
    """The tests that are marked `cuda`."""
    done = subprocess.run([*command], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            yield {"case": line[:200], "problem": "failed"}
    row = {"case": "pytest -m cuda", "summary": lines[-1].strip("= ") if lines else done.stderr[-200:]}
    # 5: nothing was selected.
    yield row if done.returncode in (0, 5) else row | {"problem": f"exit code {done.returncode}"}


def rows_of(part: str, place: Place) -> Iterator[Row]:
    """What a part yields, told as it comes."""
    began = time.monotonic()
    for row in tests() if part == "tests" else MEASURED[part](place):
        print(f"{part}, {time.monotonic() - began:.0f} s: {_short(row)}", file=sys.stderr, flush=True)
        yield row


def _short(row: Row) -> str:
    return ", ".join(f"{key} {_cell(value)}" for key, value in row.items())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


def table(part: str, rows: list[Row]) -> str:
    """Markdown."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"### {part}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    cells = ([_cell(row.get(key)).replace("|", "/") for key in columns] for row in rows)
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)])


def apart(part: str, toy: bool, longest: float = LONGEST) -> dict[str, Any]:
    """A part in a process of its own, its rows as far as it came, and what went wrong."""
    command = [sys.executable, __file__, "--alone", "--part", part, *(["--toy"] if toy else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        said, _ = process.communicate(timeout=longest)
        problem = None if process.returncode == 0 else f"ended with exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        problem = f"took more than {longest:.0f} s and was ended"
    return {"rows": [json.loads(line) for line in said.splitlines()], "problem": problem}


def machine(place: Place) -> dict[str, Any]:
    """The device, what it does at most, and the versions."""
    return {
        "device": place.name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "rates": vars(rates(place)),
    }


def measure(parts: Iterable[str], toy: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in parts:
        found[part] = apart(part, toy)
        if found[part]["problem"]:
            print(f"{part}: {found[part]['problem']}; the other parts go on", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="*", choices=PARTS, help="all if left out")
    parser.add_argument("--toy", action="store_true", help="on a CPU, at a size that proves nothing but that it runs")
    parser.add_argument(
        "--alone", action="store_true", help="run one part in this process and print a line of JSON for each row"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu.json")
    args = parser.parse_args()
    if not args.toy and not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU here, so there is nothing to measure (--toy runs on a CPU)")
        return
    parts, place = args.part or PARTS, Place(args.toy)
    if args.alone:
        for row in rows_of(parts[0], place):
            print(json.dumps(row), flush=True)
        return
    result = {"machine": machine(place), "parts": measure(parts, args.toy)}
    for part, found in result["parts"].items():
        print(f"\n{table(part, found['rows'])}" + (f"\n\n**{found['problem']}**" if found["problem"] else ""))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{args.out}")


if __name__ == "__main__":
    main()
