"""Train any of these compositions for a few steps on real data, and show that it is what it says.

    python recipes/compositions/train.py recipes/compositions/*.yaml
    python recipes/compositions/train.py recipes/compositions/slam_asr.yaml --steps 200 --out runs/slam_asr

Frozen towers without weights are trained on their own modality first, as a stand-in for pre-trained ones. Then the
whole is trained on every linked direction, its certificates are proven, and it is saved and loaded again. The data
ships with zippkit and scikit-learn: spoken digit strings (units, words, and a few recordings), and handwritten
digits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zippkit.batch.batch import Batch, Segment
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.composition import Composition, compile, load
from zippkit.data.audio import read_audio
from zippkit.data.dataset import Dataset
from zippkit.data.readers import DIGITS
from zippkit.errors import ZippkitError
from zippkit.evaluation.certificates import Report, verify
from zippkit.loading import load_spec
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.derived_recipe import learning_rates, single_tower
from zippkit.spec.phase import Phase
from zippkit.spec.task import Task, linked_tasks
from zippkit.system.progress import progress
from zippkit.training.device import backend
from zippkit.training.optimizer import build_optimizer
from zippkit.training.step import build_step

DEMO = Path(__file__).parents[1] / "demo"
N_EXAMPLES = 64
BATCH_SIZE = 16
FEW = 5
"""Steps over which the first and the last loss are averaged."""


@dataclass(frozen=True)
class Outcome:
    """What came out for one composition."""

    name: str
    first: float
    """Nats per predicted token over the first few steps."""
    last: float
    same_logits: bool
    """Whether the composition that was saved and loaded gives the same logits, bit for bit."""
    report: Report
    seconds: float


@cache
def _words() -> Dataset:
    return Dataset.open(DEMO / "data")


@cache
def _handwritten() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N, 8, 8) images of 17 grey levels, and (N,) the digits that they show."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.int64), digits.target


@cache
def _recordings() -> list[tuple[NDArray[np.float32], str]]:
    """Waveforms and what is said."""
    files = sorted((DEMO / "audio").glob("*.wav"))
    return [(read_audio(file)[0].astype(np.float32), file.stem.replace("_", " ")) for file in files]


def example(spec: CompositionSpec, task: Task, index: int) -> dict[str, Any]:
    """One thing in each of a task's modalities: a digit string, spoken and written, a picture of its first digit."""
    spoken = _words().split("train")[index]
    words = str(spoken.items["text"])
    values: dict[str, Any] = {"speech": spoken.items["speech"]}
    hears = {name for name in task.modalities if spec.towers[spec.modalities[name]].settings.continuous}
    if "speech" in hears:
        values["speech"], words = _recordings()[index % len(_recordings())]
    if "image" in task.modalities:
        images, shown = _handwritten()
        digit = DIGITS.index(words.split()[0])
        image = images[np.flatnonzero(shown == digit)[index % 100]]
        # An encoder of images is fed floats of mean 0; each pixel is drawn as two by two.
        values["image"] = np.kron(image / 8 - 1, np.ones((2, 2)))[None] if "image" in hears else image.ravel()
        words = words if "speech" in task.modalities else DIGITS[digit]
    values["text"] = _text_ids(spec, words) if "text" in task.modalities else []
    # Two voices at once: the string and the one after it, cut to one length.
    other = _words().split("train")[index + 1].items["speech"]
    n = min(len(spoken.items["speech"]), len(other))
    return values | {"left": spoken.items["speech"][:n], "right": other[:n]}


def _text_ids(spec: CompositionSpec, words: str) -> list[int]:
    """The words as the text tower's tokens."""
    path = spec.towers["text"].config.get("path")
    if path is None:
        return _words().text_tokenizer("text").encode(words)
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(Path(path) / "tokenizer.json")).encode(words, add_special_tokens=False).ids
    return ids


def rows(spec: CompositionSpec, task: Task, n: int = N_EXAMPLES) -> list[list[Segment]]:
    """Examples of a task."""
    found = (example(spec, task, index) for index in range(n))
    return [
        [
            *(Segment(name, values[name], loss=False) for name in task.conditions),
            *(Segment(name, values[name]) for name in task.targets),
        ]
        for values in found
    ]


def train(zipped: Composition, tasks: Sequence[Task], steps: int, rate: float = 3e-3) -> list[float]:
    """Train on the tasks in turn; the losses of every step, averaged over the tasks."""
    phase = Phase(steps=steps, tasks=[str(task) for task in tasks], learning_rate=rate)
    rates = learning_rates(zipped.spec, phase)
    step = build_step(zipped.model.train(), build_optimizer(zipped.model, rates, phase), phase, backend("cpu"))
    examples = [rows(zipped.spec, task) for task in tasks]

    def batch(of: list[list[Segment]], number: int) -> Batch:
        at = number * BATCH_SIZE % len(of)
        return zipped.collate(of[at : at + BATCH_SIZE], multiple=16)

    losses = []
    with progress(zipped.spec.name, steps) as advance:
        for number in range(steps):
            losses.append(float(np.mean([float(step(batch(of, number))["total"]) for of in examples])))
            advance(number + 1, f"loss {losses[-1]:.2f}")
    return losses


def trained(spec: CompositionSpec, steps: int, scratch: Path) -> tuple[Composition, list[float]]:
    """The composition after training; frozen towers without weights are trained alone first."""
    data = spec.model_dump(by_alias=True, exclude_unset=True)
    for name, tower in spec.towers.items():
        random = tower.weights is None and tower.config.get("path") is None
        if tower.freeze is True and random and not tower.settings.continuous:
            alone = compile(single_tower(spec, name))
            train(alone, [Task((), name)], steps)
            write_tower(scratch / name, alone.model.tower(name), tower.kind)
            data["towers"][name]["weights"] = scratch / name
    zipped = compile(CompositionSpec.model_validate(data, strict=False))
    return zipped, train(zipped, linked_tasks(spec), steps)


@torch.no_grad()
def same_logits(one: Composition, other: Composition) -> bool:
    """Whether two compositions agree on every linked direction, bit for bit."""
    for task in linked_tasks(one.spec):
        batch = one.collate(rows(one.spec, task, 4))
        ours, theirs = one.model.eval()(batch), other.model.eval()(batch)
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
            return False
    return True


def run(file: Path, steps: int, out: Path) -> Outcome:
    """Train, prove, save and load one composition."""
    began = time.monotonic()
    spec = load_spec(file)
    zipped, losses = trained(spec, steps, out / "towers")
    zipped.save(out / "model")
    same = same_logits(zipped, load(out / "model"))
    return Outcome(
        spec.name,
        float(np.mean(losses[:FEW])),
        float(np.mean(losses[-FEW:])),
        same,
        verify(zipped),
        time.monotonic() - began,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, help="keep towers and model here; a temporary folder if left out")
    arguments = parser.parse_args()
    failed = False
    for file in arguments.specs:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                outcome = run(file, arguments.steps, arguments.out or Path(scratch))
        except ZippkitError as error:
            parser.exit(2, f"{error}\n")
        sound = outcome.report.passed and outcome.same_logits and outcome.last < outcome.first
        failed |= not sound
        print(
            f"{outcome.name:<24} loss {outcome.first:.2f} -> {outcome.last:.2f}   "
            f"reloaded {'bit-equal' if outcome.same_logits else 'DIFFERS'}   "
            f"certificates {'hold' if outcome.report.passed else 'FAIL'}   {outcome.seconds:.0f} s",
            flush=True,
        )
        if not outcome.report.passed:
            print(outcome.report)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
