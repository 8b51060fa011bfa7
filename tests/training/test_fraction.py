"""`fraction`: which part of the examples a phase learns from."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from helpers.tiny_runs import tiny_recipe, write_data
from zippkit.data.dataset import Dataset
from zippkit.spec.task import Task
from zippkit.training.batch_order import BatchOrder
from zippkit.training.task_data import TaskData
from zippkit.training.trainer import train

LISTEN, SPEAK = Task(("speech",), "text"), Task(("text",), "speech")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_data(tmp_path_factory.mktemp("fraction") / "data")


def part(data: Dataset, fraction: float, seed: int = 0, task: Task = LISTEN) -> TaskData:
    return TaskData(task, data, data.split("train")).part(fraction, seed)


def test_a_smaller_part_lies_inside_a_larger_one(data: Dataset) -> None:
    parts = [part(data, fraction) for fraction in (0.001, 0.25, 0.5, 1.0)]
    assert [len(each) for each in parts] == [1, 6, 12, 24]
    names = [list(each.ids(range(len(each)))) for each in parts]
    assert all(set(small) < set(large) for small, large in pairwise(names))
    assert all(each == sorted(each) for each in names)


def test_every_task_gets_the_same_examples_and_every_seed_others(data: Dataset) -> None:
    whole = range(6)
    assert part(data, 0.25).ids(whole) == part(data, 0.25, task=SPEAK).ids(whole)
    assert part(data, 0.25).ids(whole) != part(data, 0.25, seed=1).ids(whole)


def test_a_part_holds_its_own_texts_and_units(data: Dataset) -> None:
    whole, some = part(data, 1.0), part(data, 0.25)
    for i, name in enumerate(some.ids(range(len(some)))):
        place = whole.ids(range(len(whole))).index(name)
        for ours, theirs in zip(some.segments(i), whole.segments(place), strict=True):
            assert list(ours.tokens) == list(theirs.tokens)
        assert some.lengths[i] == whole.lengths[place]


def test_training_draws_from_the_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    build = BatchOrder.__init__
    monkeypatch.setattr(
        BatchOrder,
        "__init__",
        lambda self, lengths, *more: (sizes.append(len(lengths[0])), build(self, lengths, *more))[1],
    )
    phase = {"steps": 2, "batch_size": 4}
    train(
        tiny_recipe(tmp_path, {**phase, "fraction": 0.25}, pretrain={"text": {**phase, "fraction": 0.5}}),
        tmp_path / "run",
    )
    assert sizes == [12, 6]
