"""What stands beside an exported model: tokenizers that need no zippkit, and a card that the hub reads."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import transformers
import yaml

from helpers.tiny_runs import SOUND, demo_run
from zippkit.data.audio import read_audio
from zippkit.data.speech_tokenizer import SpeechTokenizer
from zippkit.data.text import FileTokenizer
from zippkit.training.hf_export.writing import export_model
from zippkit.training.hf_parts.speech_units import SpeechUnits
from zippkit.training.run_folder import RunFolder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "out"
    assert export_model(demo_run(), folder) == []
    return folder


@cache
def own(name: str) -> object:
    return RunFolder(demo_run()).tokenizer(name)


def test_sound_becomes_the_same_units_and_sounds_again(out: Path) -> None:
    """Units of a recording are the run's own; what they are played as is heard as mostly the same units."""
    units, tokenizer = SpeechUnits(str(out), "speech"), own("speech")
    assert isinstance(tokenizer, SpeechTokenizer)
    wave, rate = read_audio(SOUND)
    ids = units.encode(wave)
    assert rate == units.sample_rate and ids == tokenizer.encode(wave, rate).tolist()
    sound = units.decode([*ids, tokenizer.begin])
    assert abs(len(sound) - len(wave)) < rate / 10 and float(sound.abs().max()) > 0.01
    assert units.decode([]).shape == (0,)


def test_text_becomes_the_same_ids(out: Path) -> None:
    tokenizer = own("text")
    assert isinstance(tokenizer, FileTokenizer)
    for more in ({}, {"subfolder": "tokenizers/text"}):
        theirs = transformers.AutoTokenizer.from_pretrained(out, trust_remote_code=True, **more)
        assert theirs("two five zero", add_special_tokens=False)["input_ids"] == tokenizer.encode("two five zero")
        assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.begin, tokenizer.end)


def test_the_card_says_what_it_is(out: Path) -> None:
    """Front matter for the hub, the picture beside it, every tower, how to load it."""
    _, front, body = (out / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(front)
    assert told["library_name"] == "transformers" and {"zippkit", "speech", "text"} <= set(told["tags"])
    assert "![Towers, links between them, and what is frozen](diagram.svg)" in body
    assert (out / "diagram.svg").read_text().startswith("<svg")
    for words in ("trust_remote_code=True", "| text | decoder | no | trained here |", "## Data", "C10 is proven by"):
        assert words in body, words
