"""Sound or text in, sound or text out, from a run alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import zippkit.evaluation.conversation
from helpers.tiny_runs import DEMO, SOUND, demo_run, finished_run
from zippkit.batch.batch import Segment
from zippkit.data.audio import read_audio, write_audio
from zippkit.data.dataset import Dataset
from zippkit.data.units import UnitTokenizer
from zippkit.errors import ZippkitError
from zippkit.evaluation.conversation import Given, answer, read_prompt


def answers(run: Path, **given: Any) -> list[str]:
    """From ``audio``, ``text`` or a whole ``prompt``."""
    sources = [Given(given.pop(name)) for name in ("audio", "text") if name in given]
    return list(answer(run, given.pop("prompt", sources), **({"max_tokens": 6} | given)))


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[Segment]:
    """The prompts that generation is asked to continue; it answers with two tokens of its own."""
    seen: list[Segment] = []

    def generate(zipped: Any, prompt: list[Segment], outputs: list[str], *_: Any, **__: Any) -> list[Segment]:
        seen.extend(prompt)
        return [Segment(name, [3, 4]) for name in outputs]

    monkeypatch.setattr(zippkit.evaluation.conversation, "generate", generate)
    return seen


def units() -> UnitTokenizer:
    tokenizer = Dataset.open(DEMO / "data").tokenizer("speech")
    assert isinstance(tokenizer, UnitTokenizer)
    return tokenizer


def test_sound_becomes_units_and_the_answer_words(prompts: list[Segment]) -> None:
    assert answers(demo_run(), audio=SOUND) == ["text: eight five"]
    (prompt,) = prompts
    assert prompt.tower == "speech"
    assert np.array_equal(prompt.tokens, units().encode(*read_audio(SOUND)))


def test_another_sample_rate_is_converted(prompts: list[Segment], tmp_path: Path) -> None:
    wave, rate = read_audio(SOUND)
    write_audio(tmp_path / "fast.flac", np.repeat(wave, 2), 2 * rate)
    answers(demo_run(), audio=tmp_path / "fast.flac")
    assert abs(len(prompts[0].tokens) - len(units().encode(wave, rate))) <= 1


def test_text_becomes_tokens_and_the_answer_sound(prompts: list[Segment], tmp_path: Path) -> None:
    out = tmp_path / "answer.wav"
    assert answers(demo_run(), text="two five", out=out) == [f"speech: 2 units in {out}"]
    assert prompts[0].tower == "text"
    assert prompts[0].tokens == Dataset.open(DEMO / "data").text_tokenizer("text").encode("two five")
    wave, rate = read_audio(out)
    assert rate == units().config.sample_rate
    assert np.abs(wave - units().to_sound([3, 4])).max() < 1e-3


def test_towers_are_named_in_order(prompts: list[Segment], tmp_path: Path) -> None:
    out = tmp_path / "answer.wav"
    told = answers(demo_run(), audio=SOUND, outputs=["text", "speech", "text"], out=out)
    assert told == ["text: eight five", f"speech: 2 units in {out}", "text: eight five"]


def test_several_sounds_are_numbered(prompts: list[Segment], tmp_path: Path) -> None:
    told = answers(demo_run(), text="two", outputs=["speech", "text", "speech"], out=tmp_path / "a.wav")
    assert [line.split(" in ")[-1] for line in told] == [
        str(tmp_path / "a-1.wav"),
        "text: eight five",
        str(tmp_path / "a-2.wav"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.wav", "a-2.wav"]


def test_a_prompt_of_several_segments(prompts: list[Segment], tmp_path: Path) -> None:
    shutil.copy(SOUND, tmp_path / "in.wav")
    (tmp_path / "p.json").write_text('[{"speech": "in.wav"}, {"text": "two five"}, {"speech": [3, 1]}]')
    assert answers(demo_run(), prompt=read_prompt(tmp_path / "p.json")) == ["text: eight five"]
    assert [segment.tower for segment in prompts] == ["speech", "text", "speech"]
    assert list(prompts[0].tokens) == list(units().encode(*read_audio(SOUND))) and prompts[2].tokens == [3, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable prompt"),
        ("[]", "expected a list such as"),
        ('["two"]', 'segment 0: got "two"; expected a list such as'),
        ('[{"text": "a"}, {"text": "b", "speech": [1]}]', "segment 1: got"),
        ('[{"speech": 3}]', "segment 0: speech: expected text, a sound file or a list of ids, got 3"),
    ],
)
def test_prompts_that_mean_nothing_are_told(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ZippkitError) as failure:
        read_prompt(tmp_path / "p.json")
    assert message in str(failure.value) and "p.json" in str(failure.value)


def test_a_real_answer() -> None:
    (told,) = answers(demo_run(), audio=SOUND)
    assert told.startswith("text: ")
    assert told == answers(demo_run(), audio=SOUND)[0]


def test_a_tower_of_plain_ids_answers_in_ids(prompts: list[Segment]) -> None:
    """Its speech came without a tokenizer, so there is no sound to read or write."""
    assert answers(finished_run(), text="one two", outputs=["speech", "text"]) == ["speech: 3 4", "text: four one"]
    with pytest.raises(ZippkitError, match="none of the run's towers listens to sound"):
        answers(finished_run(), audio=SOUND)


def test_a_run_stands_alone(tmp_path: Path) -> None:
    """Its dataset is not asked."""
    shutil.copytree(demo_run(), tmp_path / "moved")
    assert answers(tmp_path / "moved", audio=SOUND) == answers(demo_run(), audio=SOUND)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no link reads None, so nothing can answer it; name towers with --to"),
        (
            {"prompt": [Given("one", "txt", "p: segment 3")]},
            "p: segment 3: no tower is called 'txt'; did you mean 'text'?",
        ),
        ({"prompt": [Given("one", "speech")]}, "generate: 'speech' does not read text"),
        ({"prompt": [Given(SOUND, "text")]}, "generate: 'text' does not listen to sound"),
        ({"audio": Path("nowhere.wav")}, "nowhere.wav: no such file"),
        ({"audio": DEMO}, "a folder, not a file"),
        ({"audio": SOUND, "out": Path("a.wav")}, "--out: no sound is generated, only text; remove it"),
        ({"audio": SOUND, "scorer": "moonshine"}, "--scorer: no sound is generated, only text"),
        ({"text": "\udcff"}, "is not Unicode text"),
        ({"audio": DEMO / "recipe.yaml"}, "not a readable sound file"),
        ({"text": "one"}, "speech is sound; say where to write it with --out FILE.wav"),
        ({"audio": SOUND, "outputs": ["txt"]}, "no tower is called 'txt'; did you mean 'text'?"),
        ({"text": "one", "out": Path("answer.mp3")}, "expected a .wav or .flac file in a folder that is there"),
        ({"text": "one", "out": Path("nowhere/a.wav")}, "expected a .wav or .flac file in a folder that is there"),
    ],
)
def test_what_cannot_be_answered_is_told(given: dict[str, Any], message: str, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZippkitError) as failure:
        answers(demo_run(), **given)
    assert message in str(failure.value)
    assert not list(tmp_path.iterdir())


def test_words_that_nobody_knows_are_told(prompts: list[Segment], tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    out = tmp_path / "a.wav"
    none = "generate: none of the words is in the vocabulary of 'text': 'hello', 'world'"
    with pytest.raises(ZippkitError, match=none):
        answers(demo_run(), text="hello world", out=out)
    assert not prompts
    assert answers(demo_run(), text="two hello five", out=out) == [f"speech: 2 units in {out}"]
    told = "generate: not in the vocabulary of 'text', and read as unknown: 'hello'\n"
    assert capsys.readouterr().err == told
    answers(demo_run(), text="two five", out=out)
    assert capsys.readouterr().err == ""


def test_without_a_link_nobody_answers(prompts: list[Segment]) -> None:
    with pytest.raises(ZippkitError, match="no link reads 'text', so nothing can answer it; name towers with --to"):
        answers(finished_run(), text="one")
    assert answers(finished_run(), text="one", outputs=["text"]) == ["text: four one"]
