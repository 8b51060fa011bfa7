"""Scores: word errors as jiwer counts them, what each tower kept, and before beside after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import pytest
import torch
from torch.nn import functional as F

from helpers.tiny_runs import WORDS, copied, examples, finished_run, tiny_recipe, write_data
from zippkit.batch.batch import Segment
from zippkit.composition import compile, load
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.normalize import word_error_rate
from zippkit.data.text import train_words
from zippkit.errors import CheckpointError, DataError, ZippkitError
from zippkit.evaluation.evaluate import evaluate
from zippkit.evaluation.evaluation_file import Evaluated, Retention
from zippkit.training.run_folder import RunFolder
from zippkit.training.starting_point import trained_spec
from zippkit.training.trainer import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(finished_run(), tmp_path_factory.mktemp("evaluate") / "finished")


@pytest.fixture(scope="module")
def scores(run: Path) -> Evaluated:
    return evaluate(run)


def test_word_errors_are_counted_over_all_references() -> None:
    # A substitution, a deletion and two insertions over six words.
    references, hypotheses = ["one two three", "four", "one two"], ["one one", "four four", "one two two"]
    assert word_error_rate(references, hypotheses) == pytest.approx(4 / 6)
    assert word_error_rate(references, references) == 0
    assert word_error_rate(references, [""] * 3) == 1


def test_case_punctuation_and_spelt_numbers_are_no_errors() -> None:
    assert word_error_rate(["It is two one, Anna."], ["it is 21 anna"]) == 0
    assert word_error_rate(["It is two one, Anna."], ["it was 21 anna"]) == pytest.approx(1 / 5)


def test_training_is_heard(scores: Evaluated) -> None:
    (task,) = scores.tasks
    assert task.task == "speech -> text"
    assert task.wer < 0.9 * task.wer_before
    assert [answer.reference for answer in task.answers] == [example.items["text"] for example in examples(6, 1)]
    assert [answer.id for answer in task.answers] == [f"1-{i:03d}" for i in range(6)]
    assert set(" ".join(answer.hypothesis for answer in task.answers).split()) <= set(WORDS)
    hypotheses = [answer.hypothesis for answer in task.answers]
    assert task.wer == jiwer.wer([answer.reference for answer in task.answers], hypotheses)


def test_frozen_towers_lose_exactly_nothing(scores: Evaluated) -> None:
    text, speech = scores.retention
    assert (text.tower, text.frozen, text.change) == ("text", True, 0.0)
    assert (speech.tower, speech.frozen) == ("speech", False)
    assert speech.change != 0
    assert Retention("speech", False, 1.0, 1.5).change == 0.5


def test_a_tower_s_loss_is_that_of_its_own_modality(scores: Evaluated, run: Path) -> None:
    """Nats per token over the whole split, whatever the size of a batch."""
    before = compile(trained_spec(RunFolder(run).recipe(), RunFolder(run)))
    for retention, zipped in ((scores.retention[1].before, before), (scores.retention[1].after, load(run))):
        nats = []
        for example in examples(6, 1):
            batch = zipped.collate([[Segment("speech", example.items["speech"])]])
            logits = zipped.model(batch)["speech"][0].detach()
            nats.append(F.cross_entropy(logits[:-1], batch.towers["speech"].tokens[0, 1:], reduction="none"))
        assert retention == pytest.approx(float(torch.cat(nats).mean()), rel=1e-5)


def test_the_scores_are_kept_in_the_run(scores: Evaluated, run: Path) -> None:
    written = json.loads((run / "evaluation.json").read_text())
    assert written["split"] == scores.split == "test"
    assert written["tasks"][0]["wer"] == scores.tasks[0].wer
    assert written["retention"][0] == {"tower": "text", "frozen": True} | {
        key: getattr(scores.retention[0], key) for key in ("before", "after")
    }
    assert "evaluate" in json.loads((run / "seconds.json").read_text())


def test_answers_are_scored_as_they_come(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand-made ones: nothing before training, and after it all but the first word."""
    texts = [str(example.items["text"]) for example in examples(6, 1)]
    given: list[list[list[Segment]]] = []
    ids = {word: 3 + i for i, word in enumerate(WORDS)}

    def generate(
        zipped: Any, prompts: Sequence[Any], outputs: Sequence[str], max_tokens: int, *_: Any, **__: Any
    ) -> list[list[Segment]]:
        assert (outputs, max_tokens) == (["text"], 6)
        given.append(list(prompts))
        n_before = sum(len(batch) for batch in given) - len(prompts)
        rows = texts[n_before % 6 : n_before % 6 + len(prompts)]
        after = n_before >= 6
        return [[Segment("text", [ids[word] for word in row.split()[1:]] if after else [])] for row in rows]

    monkeypatch.setattr("zippkit.training.answers.generate_batch", generate)
    (task,) = evaluate(run).tasks
    n_words = sum(len(text.split()) for text in texts)
    assert task.wer_before == 1
    assert task.wer == pytest.approx(6 / n_words)
    assert [answer.hypothesis for answer in task.answers] == [" ".join(text.split()[1:]) for text in texts]
    assert [len(batch) for batch in given] == [4, 2, 4, 2]
    assert all([segment.tower for segment in prompt] == ["speech"] for batch in given for prompt in batch)


def test_another_split_and_other_data(run: Path, tmp_path: Path) -> None:
    assert len(evaluate(run, "train").tasks[0].answers) == 24
    other = write_data(tmp_path / "other", 5)
    assert len(evaluate(run, "train", other.path).tasks[0].answers) == 5
    with pytest.raises(DataError, match=r"no split 'tset'; did you mean 'test'\?"):
        evaluate(run, "tset")
    with pytest.raises(DataError, match="no such folder"):
        evaluate(run, data=tmp_path / "nowhere")


def test_data_of_another_tokenizer_are_refused(run: Path, tmp_path: Path) -> None:
    other = write_data(tmp_path / "other", words=[*WORDS[:-1], "zero"])
    with pytest.raises(DataError, match="its text tokens were made by another tokenizer"):
        evaluate(run, data=other.path)
    silent = examples(3, 0)
    for example in silent:
        del example.items["speech"]
    data = write_dataset(tmp_path / "silent", {"test": silent}, {"text": train_words(WORDS)})
    with pytest.raises(DataError, match="no modality is called 'speech'"):
        evaluate(run, data=data.path)


def test_only_the_first_so_many(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, {"steps": 1}, evaluate={"limit": 3, "batch_size": 2, "max_tokens": 4})
    train(recipe, tmp_path / "run")
    assert [answer.id for answer in evaluate(tmp_path / "run").tasks[0].answers] == ["1-000", "1-001", "1-002"]


def test_what_cannot_be_scored_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ZippkitError, match="no run is there"):
        evaluate(tmp_path)
    recipe = tiny_recipe(tmp_path, {"steps": 1}, evaluate={"tasks": ["text"]})
    train(recipe, tmp_path / "alone")
    with pytest.raises(ZippkitError, match="no task of this run ends in text"):
        evaluate(tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone" / "model")
    with pytest.raises(CheckpointError, match="not finished"):
        evaluate(tmp_path / "alone")
