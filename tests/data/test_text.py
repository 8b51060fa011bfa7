"""Text tokenizers: what goes in comes out, frames are found, and no text can spell one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zippkit.data.text import ByteTokenizer, FileTokenizer, TextTokenizer, train_words
from zippkit.data.text_files import load_text_tokenizer
from zippkit.errors import DataError

WORDS = train_words(["two seven one", "two  five"])


def word_level(path: Path, vocab: list[str], beside: dict[str, object] | None = None) -> Path:
    """A tokenizer.json without special tokens, and JSON files beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocab)}, unk_token=vocab[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))
    for name, content in (beside or {}).items():
        (path / name).write_text(json.dumps(content))
    return path / "tokenizer.json"


@given(st.text())
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert all(0 <= i < 256 for i in ids)
    assert tokenizer.decode([tokenizer.begin, *ids, tokenizer.end]) == text


def test_bytes_take_any_ids() -> None:
    assert ByteTokenizer().decode([104, 105, 300, 0xC3, 256]) == "hi\ufffd"


@given(st.lists(st.sampled_from(["one", "two", "five", "seven"])))
def test_words_round_trip(words: list[str]) -> None:
    text = " ".join(words)
    assert WORDS.decode([WORDS.begin, *WORDS.encode(text), WORDS.end]) == text


def test_words_have_one_id_each_after_the_special_ones() -> None:
    assert (WORDS.begin, WORDS.end, WORDS.vocab_size) == (1, 2, 7)
    assert WORDS.encode("five one seven two") == [3, 4, 5, 6]
    assert WORDS.decode(WORDS.encode("two eight one")) == "two <unk> one"


def test_no_words_are_refused() -> None:
    with pytest.raises(DataError, match="no words"):
        train_words(["  "])


@pytest.mark.data
@pytest.mark.parametrize("text", ["Once upon a time, there was", " hi  there ", "héllo ✓", "a </s> b <s>"])
def test_a_real_tokenizer_round_trips(stories260k: Path, text: str) -> None:
    tokenizer = load_text_tokenizer(stories260k)
    assert (tokenizer.begin, tokenizer.end, tokenizer.vocab_size) == (1, 2, 512)
    ids = tokenizer.encode(text)
    assert not {1, 2} & set(ids)
    assert tokenizer.decode([1, *ids, 2]) == text


@pytest.mark.data
def test_it_gives_the_ids_that_its_model_was_trained_on(stories260k: Path) -> None:
    assert load_text_tokenizer(stories260k / "tokenizer.json").encode("Once upon a time") == [403, 407, 261, 378]


def test_words_without_an_id_are_named() -> None:
    assert WORDS.unknown("two eight one nine eight") == ["eight", "nine"]
    assert WORDS.unknown("two one") == []
    assert ByteTokenizer().unknown("h\u00e9llo") == []


def test_a_tokenizer_without_an_unknown_token_names_the_words_it_cannot_read(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "one": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_text_tokenizer(tmp_path)
    assert loaded.encode("one") == [2]
    assert loaded.unknown("one two three") == ["two", "three"]
    with pytest.raises(DataError, match=r"cannot read 'two', 'three': .*; expected a tokenizer with a token for unk"):
        loaded.encode("one two three")


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), WORDS])
def test_a_saved_tokenizer_is_the_same(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "text.json")
    loaded = load_text_tokenizer(tmp_path / "text.json")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.begin, loaded.end, loaded.vocab_size) == (tokenizer.begin, tokenizer.end, tokenizer.vocab_size)
    assert loaded.encode("one two") == tokenizer.encode("one two")


def test_fingerprints_tell_tokenizers_apart() -> None:
    others: list[TextTokenizer] = [WORDS, train_words(["two"]), ByteTokenizer(), FileTokenizer(WORDS.tokenizer, 0, 2)]
    assert len({tokenizer.fingerprint for tokenizer in others}) == 4
    assert train_words(["two five", "seven one"]).fingerprint == WORDS.fingerprint


def test_a_text_that_spells_a_frame_token_is_refused() -> None:
    with pytest.raises(DataError, match="'two <end>' holds the tokenizer's own frame token '<end>'"):
        WORDS.encode("two <end>")


@pytest.mark.parametrize(
    ("vocab", "beside", "frame"),
    [
        (["x", "<s>", "</s>"], {}, (1, 2)),
        (["[BOS]", "x", "[EOS]"], {}, (0, 2)),
        (["x", "<|begin|>", "<|end|>"], {}, (1, 2)),
        (["x", "<s>", "</s>", "A", "B"], {"tokenizer_config.json": {"bos_token": "A", "eos_token": "B"}}, (3, 4)),
        (["x", "A", "B"], {"tokenizer_config.json": {"bos_token": {"content": "B"}, "eos_token": "A"}}, (2, 1)),
        (["x", "A", "B"], {"config.json": {"bos_token_id": 1, "eos_token_id": [2, 0]}}, (1, 2)),
        (["x", "<s>", "</s>"], {"tokenizer_config.json": {"bos_token": None, "eos_token": "x"}}, (1, 2)),
    ],
)
def test_frames_are_found(tmp_path: Path, vocab: list[str], beside: dict[str, object], frame: tuple[int, int]) -> None:
    loaded = load_text_tokenizer(word_level(tmp_path, vocab, beside))
    assert (loaded.begin, loaded.end) == frame


def test_frames_that_are_not_found_are_an_error_unless_given(tmp_path: Path) -> None:
    path = word_level(tmp_path, ["x", "y"])
    with pytest.raises(
        DataError, match=r"bos_token .*tokenizer_config\.json .*config\.json .*<s> </s>.*begin= and end="
    ):
        load_text_tokenizer(path)
    loaded = load_text_tokenizer(path, begin=1, end=0)
    assert (loaded.begin, loaded.end) == (1, 0)


@pytest.mark.parametrize("content", ["", "{}", "[1]", "no json", '{"zippkit": "words"}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError, match=r"t\.json: not a tokenizer\.json"):
        load_text_tokenizer(tmp_path / "t.json")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json: no readable tokenizer"):
        load_text_tokenizer(tmp_path)


@pytest.mark.data
def test_the_vocabulary_counts_by_its_largest_id(stories260k: Path, tmp_path: Path) -> None:
    shutil.copy(stories260k / "tokenizer.json", tmp_path)
    loaded = load_text_tokenizer(tmp_path)
    assert (loaded.begin, loaded.end, loaded.vocab_size) == (1, 2, 512)
