"""Tasks with several targets in sequence, and loss on what is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.tiny_runs import spec, tiny_recipe, write_data
from zippkit.composition import load
from zippkit.data.dataset import Dataset
from zippkit.evaluation.evaluate import evaluate
from zippkit.generation.api import generate
from zippkit.spec.task import Task
from zippkit.training.run_data import mixtures, open_datasets
from zippkit.training.task_data import TaskData
from zippkit.training.trainer import train

pytestmark = pytest.mark.slow

LINKS = [
    {"kind": "gated_cross_attention", "from": a, "into": b, "every": 1, "config": {"n_heads": 2}}
    for a, b in (("speech", "text"), ("text", "speech"))
]
AGAIN = "speech -> [text, speech]"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_data(tmp_path_factory.mktemp("sequences") / "data")


def carried(task: TaskData) -> list[tuple[str, bool]]:
    return [(segment.tower, segment.loss) for segment in task.segments(0)]


def test_targets_stand_one_behind_the_other_with_the_loss_on_each(data: Dataset) -> None:
    task = TaskData(Task.parse(AGAIN), data, data.split("train"))
    assert carried(task) == [("speech", False), ("text", True), ("speech", True)]
    assert [segment.tower for segment in task.prompt(0)] == ["speech"]
    first, _, last = task.segments(0)
    assert list(first.tokens) == list(last.tokens)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"task": "speech -> text"}, [False, True]),
        ({"task": "speech -> text", "mask_prompt": False}, [True, True]),
        ({"task": AGAIN, "mask_prompt": False}, [True, True, True]),
        ({"task": AGAIN, "loss": ["text"]}, [False, True, False]),
        ({"task": "speech -> text", "loss": ["speech"]}, [True, False]),
    ],
)
def test_what_carries_the_loss(tmp_path: Path, line: dict[str, object], expected: list[bool]) -> None:
    recipe = tiny_recipe(tmp_path, {"tasks": [line]}, spec=spec(links=LINKS))
    (part,) = mixtures(recipe, open_datasets(recipe))["train"].parts
    assert [loss for _, loss in carried(part)] == expected


def test_a_sequence_is_learnt_generated_and_scored_target_by_target(tmp_path: Path) -> None:
    phase = {"tasks": [AGAIN], "steps": 30, "batch_size": 12, "learning_rate": 2e-2}
    train(tiny_recipe(tmp_path, phase, spec=spec(links=LINKS)), tmp_path / "run")
    found = evaluate(tmp_path / "run")
    assert [task.task for task in found.tasks] == ["speech -> text"], "its speech has no tokenizer, and no sound"
    zipped = load(tmp_path / "run")
    data = Dataset.open(tmp_path / "data")
    task = TaskData(Task.parse(AGAIN), data, data.split("test"))
    answers = generate(zipped, task.prompt(0), ["text", "speech"], max_tokens=6)
    assert [segment.tower for segment in answers] == ["text", "speech"]
