"""Interleaved documents: rows of segments, trained as they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.tiny_runs import WORDS, spec, tiny_recipe, write_data
from zippkit.composition import compile, load
from zippkit.data.dataset import Dataset, Example
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.text import train_words
from zippkit.errors import DataError, SpecError
from zippkit.evaluation.evaluate import evaluate
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.task import Task
from zippkit.training.task_data import TaskData
from zippkit.training.trainer import train

pytestmark = pytest.mark.slow

LINKS = [
    {"kind": "gated_cross_attention", "from": a, "into": b, "every": 1, "config": {"n_heads": 2}}
    for a, b in (("speech", "text"), ("text", "speech"))
]


def stories(n: int, seed: int = 0) -> list[Example]:
    """Words and units in turns, any number of each."""
    numbers = np.random.default_rng(seed)
    found = []
    for i in range(n):
        segments: list[tuple[str, Any]] = []
        for _ in range(numbers.integers(1, 6)):
            if numbers.random() < 0.5:
                segments.append(("text", " ".join(numbers.choice(WORDS, numbers.integers(1, 4)))))
            else:
                segments.append(("speech", numbers.integers(0, 8, numbers.integers(1, 9))))
        found.append(Example(f"{seed}-{i}", "", 0.0, segments=tuple(segments)))
    return found


def write_stories(folder: Path, n: int = 24) -> Dataset:
    return write_dataset(folder, {"train": stories(n), "test": stories(6, 1)}, {"text": train_words(WORDS)})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_stories(tmp_path_factory.mktemp("documents") / "data")


def readers() -> dict[str, Any]:
    made = CompositionSpec.model_validate(spec(links=LINKS))
    return {name: tower.settings for name, tower in made.towers.items()}


def test_a_document_gives_its_segments_as_they_stand(data: Dataset) -> None:
    task = TaskData(Task.parse("interleaved"), data, data.split("train"), readers())
    ids = {word: 3 + i for i, word in enumerate(WORDS)}
    assert len(task) == 24
    for i, document in enumerate(stories(24)):
        assert document.segments is not None
        found = task.segments(i)
        assert [segment.tower for segment in found] == [name for name, _ in document.segments]
        assert all(segment.loss for segment in found)
        for segment, (_, item) in zip(found, document.segments, strict=True):
            wanted = [ids[word] for word in item.split()] if isinstance(item, str) else item.tolist()
            assert list(segment.tokens) == wanted
    assert task.task.multimodal


def test_the_loss_may_be_on_some_modalities_alone(data: Dataset) -> None:
    task = TaskData(Task.parse("interleaved"), data, data.split("train"), readers(), loss={"text"})
    assert {(s.tower, s.loss) for i in range(24) for s in task.segments(i)} == {("text", True), ("speech", False)}


@torch.inference_mode()
def test_a_document_s_loss_is_that_of_its_segments_after_what_stands_before_them(data: Dataset) -> None:
    zipped = compile(CompositionSpec.model_validate(spec(links=LINKS)))
    for parameter in zipped.model.parameters():
        parameter.normal_(std=0.3)
    task = TaskData(Task.parse("interleaved"), data, data.split("train"), zipped.graph.readers)
    for i in range(6):
        document = task.segments(i)
        nats: dict[str, float] = {}
        counts: dict[str, int] = {}
        for k, segment in enumerate(document):
            given = [type(s)(s.tower, s.tokens, loss=False) for s in document[:k]]
            batch = zipped.collate([[*given, segment]])
            n = int((batch.towers[segment.tower].targets >= 0).sum())
            loss = zipped.loss(zipped.model(batch), batch)[segment.tower]
            nats[segment.tower] = nats.get(segment.tower, 0.0) + float(loss) * n
            counts[segment.tower] = counts.get(segment.tower, 0) + n
        batch = zipped.collate([document])
        whole = zipped.loss(zipped.model(batch), batch)
        for name, total in nats.items():
            assert float(whole[name]) == pytest.approx(total / counts[name], abs=1e-5)


def test_a_tower_s_own_modality_and_single_pairs_are_taken_from_documents_too(data: Dataset) -> None:
    own = TaskData(Task((), "text"), data, data.split("train"), readers())
    for i in range(len(own)):
        assert {segment.tower for segment in own.segments(i)} == {"text"}
    n_with = sum(any(name == "text" for name, _ in each.segments or ()) for each in stories(24))
    assert len(own) == n_with
    pairs = TaskData(Task(("speech",), "text"), data, data.split("train"), readers())
    counted = [sorted(name for name, _ in each.segments or ()) for each in stories(24)]
    assert len(pairs) == counted.count(["speech", "text"])
    assert [s.tower for s in pairs.segments(0)] == ["speech", "text"]


def test_documents_and_pairs_are_trained_in_one_run(tmp_path: Path) -> None:
    write_stories(tmp_path / "stories")
    write_data(tmp_path / "pairs")
    sources = {"stories": {"path": "stories", "tasks": ["interleaved"]}, "pairs": "pairs"}
    tasks = [{"task": "interleaved", "loss": ["text"], "weight": 2.0}, "speech -> text"]
    recipe = tiny_recipe(tmp_path, {"tasks": tasks, "steps": 6}, spec=spec(links=LINKS), data=sources)
    train(recipe, tmp_path / "run")
    assert load(tmp_path / "run").spec.name == "tiny"
    assert [(each.split, len(each.tasks)) for each in (evaluate(tmp_path / "run"),)] == [("pairs/test", 1)]


def test_documents_alone_are_trained_and_scored_by_what_towers_keep(tmp_path: Path) -> None:
    write_stories(tmp_path / "data")
    train(tiny_recipe(tmp_path, {"tasks": ["interleaved"], "steps": 40}, spec=spec(links=LINKS)), tmp_path / "run")
    found = evaluate(tmp_path / "run")
    assert found.tasks == ()
    assert {each.tower for each in found.retention} == {"text", "speech"}
    moved = compile(CompositionSpec.model_validate(spec(links=LINKS))).model.state_dict()
    last = load(tmp_path / "run").model.state_dict()
    assert not torch.equal(last["links.text_to_speech.0.output.weight"], moved["links.text_to_speech.0.output.weight"])


def test_pairs_are_no_documents(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no documents, which the task `interleaved` takes"):
        train(tiny_recipe(tmp_path, {"tasks": ["interleaved"]}, spec=spec(links=LINKS)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_modality_that_no_tower_reads(data: Dataset) -> None:
    only = {"text": readers()["text"]}
    with pytest.raises(DataError, match="documents have segments of speech, which no tower reads"):
        TaskData(Task.parse("interleaved"), data, data.split("train"), only)


def test_documents_that_are_too_long_are_named(data: Dataset) -> None:
    task = TaskData(Task.parse("interleaved"), data, data.split("train"), readers())
    tight = readers() | {"speech": readers()["speech"].model_copy(update={"max_len": 12})}
    with pytest.raises(DataError, match=r"example 0-\d+ has \d+ speech tokens, and \d+ of 24 examples have more"):
        task.check_lengths(tight)


def test_what_carries_the_loss_must_be_there(tmp_path: Path) -> None:
    wrong = [
        {"task": "interleaved", "loss": ["txt"]},
        {"task": "speech -> text", "loss": ["speech"], "mask_prompt": False},
    ]
    with pytest.raises(SpecError) as caught:
        tiny_recipe(tmp_path, {"tasks": wrong}, evaluate={"tasks": ["interleaved"]})
    assert [problem.message for problem in caught.value.problems] == [
        "loss: the task has no 'txt'; did you mean 'text'?",
        "`loss` says already what carries the loss; leave out `mask_prompt`",
        "a document has no one answer to score; expected tasks such as a -> b",
    ]
