"""Seconds and memory of a large dataset: to write it, open it, take its lengths, draw from it, and see it as a task.

    python benchmarks/large_dataset.py --examples 1000000 --folder /tmp/large

writes ``text`` (words) and ``speech`` (plain ids) once, if the folder is not there, and then measures in a process of
its own, and in two at once: what a rank costs where another one has the data open too. Memory is the peak resident set
(``VmHWM``) above that of the imports; "own" is what is not shared with others that map the file (``RssAnon``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
N_DRAWN = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="dataset to write, or to measure if it is there")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        print(json.dumps(measured(arguments.folder)))
        return
    if not arguments.folder.exists():
        began = time.monotonic()
        write(arguments.folder, arguments.examples)
        n_bytes = sum(file.stat().st_size for file in arguments.folder.rglob("*") if file.is_file())
        print(f"written in {time.monotonic() - began:.0f} s, {n_bytes / 2**20:.0f} MiB")
    for n_ranks in (1, 2):
        command = [sys.executable, __file__, "--folder", str(arguments.folder), "--rank"]
        ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(n_ranks)]
        for rank in ranks:
            print(f"{n_ranks} rank(s): {rank.communicate()[0].strip()}")


def write(folder: Path, n: int) -> None:
    from zippkit.data.dataset import Example
    from zippkit.data.dataset_writer import write_dataset
    from zippkit.data.text import train_words

    def examples() -> Iterator[Example]:
        numbers = np.random.default_rng(0)
        for i in range(n):
            said = numbers.integers(0, 10, numbers.integers(2, 40))
            items = {"text": " ".join(WORDS[word] for word in said), "speech": numbers.integers(0, 1024, 4 * len(said))}
            yield Example(f"train-{i:08d}", f"speaker-{i % 1000}", 2.5, items)

    write_dataset(folder, {"train": examples()}, {"text": train_words(WORDS)})


def measured(folder: Path) -> dict[str, float]:
    import pyarrow  # noqa: F401 - imports are not what is measured
    import tokenizers  # noqa: F401

    from zippkit.data.dataset import Dataset
    from zippkit.spec.task import Task
    from zippkit.training.task_data import TaskData

    before, own, found = memory("VmHWM"), memory("RssAnon"), {}
    began = time.monotonic()

    def took(what: str) -> None:
        nonlocal began
        found[f"{what} s"] = round(time.monotonic() - began, 3)
        found[f"{what} MiB"] = round(memory("VmHWM") - before)
        found[f"{what} own MiB"] = round(memory("RssAnon") - own)
        began = time.monotonic()

    dataset = Dataset.open(folder)
    split = dataset.split("train")
    len(split[0].items)
    took("open")
    split.lengths("speech"), split.lengths("text")
    took("lengths")
    places = np.random.default_rng(0).integers(0, len(split), N_DRAWN).tolist()
    for place in places:
        split[place]
    took(f"draw {N_DRAWN}")
    task = TaskData(Task(("speech",), "text"), dataset, split)
    took("task")
    task.lengths.max()
    took("its lengths")
    for place in places:
        task.segments(place), task.ids([place])
    took(f"its {N_DRAWN} draws")
    return found


def memory(what: str) -> float:
    """A line of the process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{what}:")) / 1024


if __name__ == "__main__":
    main()
