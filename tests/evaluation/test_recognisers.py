"""Judges of speech: what they hear in real sound, and which spellings count as the same words."""

from __future__ import annotations

import sys

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.compositions import SHARED_DATA
from helpers.tiny_runs import DEMO, zippkit
from zippkit.data.audio import Wave, read_audio, resample
from zippkit.data.normalize import DIGITS, normalize
from zippkit.errors import ZippkitError
from zippkit.evaluation.recognisers import moonshine, pocketsphinx
from zippkit.evaluation.recognisers.base import MissingScorerError, extra_is_installed, open_scorer
from zippkit.spec.registry import SCORERS, UnknownKindError, kinds

pytestmark = pytest.mark.slow

with_extra = pytest.mark.skipif(not extra_is_installed(), reason="the extra speech-eval is not installed")
KATHLEEN = SHARED_DATA / "kathleen"
SPOKEN = sorted((DEMO / "audio").glob("*.wav"))


def heard(path: str) -> Wave:
    return resample(*read_audio(path), 16_000)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Twenty-one, please!", "two one please"),
        ("21 2 7 1", "two one two seven one"),
        ("two hundred and seven", "two zero seven"),
        ("1,984 or nineteen eighty four", "one nine eight four or one nine eight four"),
        ("two thousand and six", "two zero zero six"),
        ("one thousand two thousand", "one zero zero zero two zero zero zero"),
        ("one and two", "one and two"),
        ("two hundred zero", "two zero zero zero"),
        ("3.5", "three point five"),
        ("3.141", "three point one four one"),
        ("three hundred and five hundred", "three zero zero and five zero zero"),
        ("three hundred and five", "three zero five"),
        ("a hundred dogs, a thousand cats", "one zero zero dogs one zero zero zero cats"),
        ("a-hundred and one, a  thousand; not a 100", "one zero one one zero zero zero not a one zero zero"),
        ("a dog had extra hundred", "a dog had extra hundred"),
        ("don't", "dont"),
        ("\u00c9t\u00e9", "ete"),
        ("...", ""),
    ],
)
def test_one_spelling(text: str, words: str) -> None:
    assert normalize(text) == words


def in_words(n: int) -> str:
    """English for a number below a million."""
    small = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    units = [*small.split(), "seventeen", "eighteen", "nineteen"]
    tens = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    if n < 20:
        return units[n]
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if n >= size:
            rest = f" {in_words(n % size)}" if n % size else ""
            return f"{in_words(n // size)} {name}{rest}"
    return tens[n // 10] + (f"-{units[n % 10]}" if n % 10 else "")


@given(st.integers(0, 999_999))
def test_numbers_and_their_words_are_the_same(n: int) -> None:
    assert normalize(in_words(n)) == normalize(str(n)) == " ".join(DIGITS[int(d)] for d in str(n))


@given(st.text(max_size=40))
def test_normalizing_twice_changes_nothing(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


@given(st.lists(st.sampled_from([*DIGITS, "and", "hundred", "twenty", "ten", "thousand", "cat"]), max_size=12))
def test_any_string_of_number_words_ends(words: list[str]) -> None:
    once = normalize(" ".join(words))
    assert once.count("cat") == words.count("cat")
    assert normalize(" ".join(words).upper() + "!") == once


@with_extra
@pytest.mark.parametrize("kind", ["moonshine", "pocketsphinx"])
def test_the_demo_s_recordings_are_understood(kind: str) -> None:
    said = open_scorer(kind).transcribe([heard(str(path)) for path in SPOKEN])
    assert [normalize(text) for text in said] == [path.stem.replace("_", " ") for path in SPOKEN]


@with_extra
@pytest.mark.skipif(not KATHLEEN.is_dir(), reason="no recordings in shared/data")
def test_moonshine_understands_people() -> None:
    files = sorted(KATHLEEN.glob("*.flac"))[:20]
    said = [normalize(text) for text in open_scorer("moonshine").transcribe([heard(str(path)) for path in files])]
    assert jiwer.wer([normalize(path.with_suffix(".txt").read_text()) for path in files], said) < 0.12


@with_extra
def test_moonshine_takes_long_and_short_and_empty_sounds() -> None:
    speech = heard(str(SPOKEN[0]))
    long = np.concatenate([speech] * (1 + 11 * 16_000 // len(speech)))
    said = open_scorer("moonshine").transcribe([long, speech[:100], speech[:0]])
    assert len(normalize(said[0]).split()) > 8
    assert said[2] == ""


@with_extra
def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(moonshine.SHA256, ("moonshine_onnx", "assets/tokenizer.json"), "0" * 64)
    with pytest.raises(ZippkitError, match=r"tokenizer.json: SHA-256 is b68b.*expected 0000.*pip install"):
        open_scorer("moonshine")
    monkeypatch.setitem(pocketsphinx.SHA256, "en-us/means", "0" * 64)
    with pytest.raises(ZippkitError, match=r"means: SHA-256 is 8320.*expected 0000.*pip install"):
        open_scorer("pocketsphinx")


@with_extra
def test_other_words(tmp_path: object) -> None:
    with pytest.raises(ZippkitError, match="not in its dictionary: zzyx"):
        open_scorer("pocketsphinx", {"words": ["one", "zzyx"]})
    only = open_scorer("pocketsphinx", {"words": ["five", "seven"]})
    assert set(only.transcribe([heard(str(SPOKEN[0]))])[0].split()) <= {"five", "seven"}


def test_a_wrong_name_or_setting_says_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [kind.name for kind in kinds(SCORERS)] == ["moonshine", "pocketsphinx"]
    with pytest.raises(UnknownKindError, match=r"no scorer of kind 'moonshin'.*did you mean 'moonshine'\?"):
        open_scorer("moonshin")
    with pytest.raises(ZippkitError, match=r"evaluate\.scorer_config\.thread: .*'threads'"):
        open_scorer("moonshine", {"thread": 1})
    monkeypatch.setitem(sys.modules, "moonshine_onnx", None)
    with pytest.raises(MissingScorerError, match=r"moonshine_onnx.*pip install 'zippkit\[speech-eval\]'"):
        open_scorer("moonshine")


def test_scorers_are_listed() -> None:
    said = zippkit("scorers")
    assert said.returncode == 0, said.stderr
    assert [line.split()[0] for line in said.stdout.splitlines()] == ["moonshine", "pocketsphinx"]
