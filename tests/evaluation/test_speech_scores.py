"""A run that ends in speech, scored by what is heard in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import zippkit.evaluation.evaluate
import zippkit.evaluation.speech_scores
from helpers.tiny_runs import copied, demo_run
from zippkit.batch.batch import Segment
from zippkit.data.audio import read_audio
from zippkit.data.dataset import Dataset
from zippkit.data.normalize import normalize
from zippkit.evaluation.evaluate import evaluate
from zippkit.evaluation.evaluation_file import SpeechScore
from zippkit.evaluation.recognisers.base import MissingScorerError, extra_is_installed
from zippkit.evaluation.speech_scores import spoken, total_rates
from zippkit.report.run_page import write_report
from zippkit.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

with_extra = pytest.mark.skipif(not extra_is_installed(), reason="the extra speech-eval is not installed")


def run_with(folder: Path, **evaluation: Any) -> Path:
    """A copy of the demo's run, to be scored in another way."""
    run = copied(demo_run(), folder / "copy")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["data"] = str(RunFolder(demo_run()).recipe().data.resolve())
    recipe["evaluate"] = {"limit": 3, "max_tokens": 8, "tasks": ["text -> speech"], **evaluation}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return run


def test_rates_are_errors_over_words_of_all_sentences() -> None:
    answers = [spoken("a", "one two three four", "one two", "one two three"), spoken("b", "one", "two", "")]
    assert [answer.wer for answer in answers] == [0.5, 1.0]
    assert (answers[0].wer_target, answers[0].wer_oracle, answers[1].wer_target) == (1 / 3, 0.25, 1.0)
    assert total_rates(answers) == (3 / 5, 2 / 3, 2 / 5)


@with_extra
def test_true_units_are_the_oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that gives the true units back is as good as the oracle; one that is silent misses every word."""
    run = run_with(tmp_path, samples=1, best_of=2)
    dataset = Dataset.open(RunFolder(run).recipe().data)
    rows = [dataset.split("test")[i] for i in range(3)]
    monkeypatch.setattr(
        zippkit.evaluation.speech_scores,
        "generate_batch",
        lambda *_: [[Segment("speech", row.items["speech"])] for row in rows[:2]] + [[Segment("speech", [])]],
    )
    (score,) = evaluate(run).tasks
    assert isinstance(score, SpeechScore)
    first, second, silent = score.answers
    assert first.reference == normalize(str(rows[0].items["text"]))
    for same in (first, second):
        assert (same.hypothesis, same.wer, same.wer_target) == (same.target, same.wer_oracle, 0)
        assert same.wer <= 0.5
    assert (silent.hypothesis, silent.wer, silent.sound) == ("", 1, None)
    assert score.best_of == 2
    wave, rate = read_audio(run / str(first.sound))
    assert (rate, len(wave) > rate // 2) == (dataset.tokenizer("speech").sample_rate, True)
    written = json.loads((run / "evaluation.json").read_text())
    assert written["tasks"][0]["answers"][0]["target"] == first.target
    assert {row["tower"] for row in written["retention"]} == {"text", "speech"}
    page = write_report(run).read_text()
    assert page.count('<audio controls="controls" src="data:audio/wav;base64,') == 1


def test_the_best_of_the_seeds_counts() -> None:
    class Voice:
        begin, sample_rate = 4, 16_000

        def to_sound(self, ids: Any, seed: int) -> list[float]:
            assert list(ids) == [1, 3]
            return [seed / 10] * 5

    class Scorer:
        sample_rate = 16_000

        def transcribe(self, waves: list[Any]) -> list[str]:
            assert [round(float(wave.max()), 1) for wave in waves] == [0.0, 0.1, 0.2]
            return ["one one", "1, 2", "two"]

    hear = zippkit.evaluation.speech_scores.Listener(Scorer(), Voice(), 3)
    wave, words = hear([1, 4, 3, 9], "one two")
    assert (wave[0], words) == (0.1, "one two")


@with_extra
def test_two_splits(tmp_path: Path) -> None:
    dataset = Dataset.open(RunFolder(demo_run()).recipe().data)
    names = list(dataset.splits)[:2]
    result = evaluate(run_with(tmp_path, splits=names, limit=1))
    assert [result.split, *(each.split for each in result.more)] == names
    assert [each.task for each in result.more[0].tasks] == ["text -> speech"]


def test_without_a_scorer_speech_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: Any) -> None:
        raise MissingScorerError("scoring speech needs x: pip install 'zippkit[speech-eval]'")

    monkeypatch.setattr(zippkit.evaluation.evaluate, "open_scorer", missing)
    result = evaluate(run_with(tmp_path / "a"))
    assert result.tasks == ()
    assert "not scored: text -> speech: scoring speech needs x" in capsys.readouterr().err
    assert len(result.skipped) == 1
    with pytest.raises(MissingScorerError):
        evaluate(run_with(tmp_path / "b", scorer="moonshine"))
