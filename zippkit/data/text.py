"""Text tokenizers: bytes, words, or a Hugging Face tokenizer.json. The only file that imports tokenizers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zippkit.errors import DataError
from zippkit.system.files import appearing, parse_json, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FRAME_TOKENS = (
    ("<begin>", "<end>"),
    ("<s>", "</s>"),
    ("<bos>", "<eos>"),
    ("[BOS]", "[EOS]"),
    ("<|begin|>", "<|end|>"),
    ("<|begin_of_text|>", "<|end_of_text|>"),
    ("<|startoftext|>", "<|endoftext|>"),
    ("<|im_start|>", "<|im_end|>"),
    ("[CLS]", "[SEP]"),
)
"""Begin and end tokens as models name them, in the order in which they are looked for."""

UNKNOWN = "<unk>"


class TextTokenizer(Protocol):
    """Text to ids and back. Begin and end ids frame a segment; the text itself never holds them."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what an id means."""

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without begin and end."""

    def unknown(self, text: str) -> list[str]:
        """The words of ``text``, parted by spaces, of which some part has no id of its own; each once."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; begin and end are left out."""

    def save(self, path: str | Path) -> None:
        """Write the one file that ``load_text_tokenizer`` reads."""


@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes, then begin and end: needs no file and knows every text."""

    vocab_size: int = 258
    begin: int = 256
    end: int = 257
    fingerprint: str = hashlib.sha256(b"zippkit bytes 256 257").hexdigest()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def unknown(self, text: str) -> list[str]:
        del text
        return []

    def decode(self, ids: Sequence[int]) -> str:
        """Ids past 255 are left out; bytes that are not UTF-8 become U+FFFD."""
        return bytes(int(i) for i in ids if 0 <= i < 256).decode(errors="replace")

    def save(self, path: str | Path) -> None:
        write_text(path, json.dumps({"zippkit": "bytes"}) + "\n")


@dataclass(frozen=True, eq=False)
class FileTokenizer:
    """A Hugging Face ``tokenizer.json``."""

    tokenizer: Tokenizer
    begin: int
    end: int

    def __post_init__(self) -> None:
        # A transcript that spells out "</s>" must not end the segment.
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    @cached_property
    def vocab_size(self) -> int:
        return 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    @cached_property
    def fingerprint(self) -> str:
        content = json.dumps(json.loads(self.tokenizer.to_str()), sort_keys=True)
        return hashlib.sha256(f"{self.begin} {self.end} {content}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """As the protocol has it.

        Raises:
            DataError: the text spells a begin or end token out, and the tokenizer takes it for one; or it has a word
                that the tokenizer cannot read, for want of a token for unknown words.
        """
        try:
            ids: list[int] = self._ids(text)
        except Exception as error:  # the Rust side raises nothing narrower
            words = ", ".join(map(repr, self.unknown(text))) or repr(text)
            raise DataError(
                f"the tokenizer cannot read {words}: {error}; expected a tokenizer with a token for unknown words, or "
                "words of its vocabulary"
            ) from None
        for frame in (self.begin, self.end):
            if frame in ids:
                raise DataError(f"{text!r} holds the tokenizer's own frame token {self.tokenizer.id_to_token(frame)!r}")
        return ids

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _unknown_id(self) -> int | None:
        """The id that stands for what has none."""
        model = json.loads(self.tokenizer.to_str()).get("model", {})
        found = model.get("unk_id")
        return found if isinstance(found, int) else _token_id(self.tokenizer, model.get("unk_token"))

    def unknown(self, text: str) -> list[str]:
        return [word for word in dict.fromkeys(text.split()) if not self._reads(word)]

    def _reads(self, word: str) -> bool:
        try:
            return self._unknown_id not in self._ids(word)
        except Exception:  # as above
            return False

    def decode(self, ids: Sequence[int]) -> str:
        """Ids that the tokenizer does not have are left out."""
        kept = [int(i) for i in ids if i not in (self.begin, self.end) and 0 <= i < self.vocab_size]
        text: str = self.tokenizer.decode(kept, skip_special_tokens=False)
        return text

    def save(self, path: str | Path) -> None:
        """Write ``tokenizer.json``; a caller whose begin and end cannot be found in it keeps them itself."""
        with appearing(path) as new:
            self.tokenizer.save(str(new))


def train_words(texts: Iterable[str]) -> FileTokenizer:
    """One id per word that occurs in ``texts``, words being what spaces part; others read as ``<unk>``."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    begin, end = FRAME_TOKENS[0]
    special = [UNKNOWN, begin, end]
    words = sorted({word for text in texts for word in text.split()}.difference(special))
    if not words:
        raise DataError("no words to make a tokenizer of")
    vocab = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return FileTokenizer(tokenizer, vocab[begin], vocab[end])


def load_text_tokenizer(
    path: str | Path, begin: int | None = None, end: int | None = None
) -> ByteTokenizer | FileTokenizer:
    """``"bytes"``, a ``tokenizer.json``, or the folder of one.

    Args:
        begin, end: the frame's ids; left out, they are found in the ``tokenizer_config.json`` or ``config.json``
            beside the file, or by the usual names in its vocabulary (``FRAME_TOKENS``).

    Raises:
        DataError: no such file, not a tokenizer, or no begin and end to be found.
    """
    if str(path) == "bytes":
        return ByteTokenizer()
    from tokenizers import Tokenizer

    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: no readable tokenizer ({error})") from None
    if _json_object(content).get("zippkit") == "bytes":
        return ByteTokenizer()
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the Rust side raises nothing narrower
        raise DataError(f"{file}: not a tokenizer.json ({error})") from None
    if begin is None or end is None:
        found_begin, found_end = _find_frame(tokenizer, file)
        begin, end = found_begin if begin is None else begin, found_end if end is None else end
    return FileTokenizer(tokenizer, begin, end)


def _find_frame(tokenizer: Tokenizer, file: Path) -> tuple[int, int]:
    candidates = [*_frames_beside(tokenizer, file), *_frames_by_name(tokenizer)]
    if candidates:
        return candidates[0]
    names = ", ".join(f"{begin} {end}" for begin, end in FRAME_TOKENS)
    raise DataError(
        f"{file}: no begin and end token; looked for bos_token and eos_token in tokenizer_config.json and "
        f"bos_token_id and eos_token_id in config.json beside it, and in the vocabulary for {names}; "
        "pass begin= and end="
    )


def _frames_beside(tokenizer: Tokenizer, file: Path) -> Iterator[tuple[int, int]]:
    for name, suffix in (("tokenizer_config.json", ""), ("config.json", "_id")):
        beside = file.with_name(name)
        settings = _json_object(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
        ids = [_token_id(tokenizer, settings.get(f"{which}_token{suffix}")) for which in ("bos", "eos")]
        if ids[0] is not None and ids[1] is not None:
            yield ids[0], ids[1]


def _frames_by_name(tokenizer: Tokenizer) -> Iterator[tuple[int, int]]:
    for pair in FRAME_TOKENS:
        begin, end = (tokenizer.token_to_id(token) for token in pair)
        if begin is not None and end is not None:
            yield begin, end


def _token_id(tokenizer: Tokenizer, value: Any) -> int | None:
    """Of an id, a token, ``{"content": token}``, or a list, whose first counts."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, Mapping):
        value = value.get("content")
    if isinstance(value, str):
        token_id: int | None = tokenizer.token_to_id(value)
        return token_id
    return value if isinstance(value, int) else None


def _json_object(content: str) -> dict[str, Any]:
    try:
        parsed = parse_json(content)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
