"""Text tokenizers: bytes, words, or a Hugging Face tokenizer.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from zippkit.errors import DataError
from zippkit.system.files import appearing, write_text

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
    def vocab_size(self) -> int:
        """Number of ids, begin and end included."""

    @property
    def begin(self) -> int:
        """Id that opens a segment."""

    @property
    def end(self) -> int:
        """Id that closes a segment."""

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
        """Return the ids, without begin and end."""
        return list(text.encode())

    def unknown(self, text: str) -> list[str]:
        """Return the words of ``text`` without an id of their own; bytes know every word."""
        del text
        return []

    def decode(self, ids: Sequence[int]) -> str:
        """Ids past 255 are left out; bytes that are not UTF-8 become U+FFFD."""
        return bytes(int(i) for i in ids if 0 <= i < 256).decode(errors="replace")

    def save(self, path: str | Path) -> None:
        """Write the one file that ``load_text_tokenizer`` reads."""
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
        """Number of ids, begin and end included."""
        return 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what an id means."""
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
        return found if isinstance(found, int) else token_id(self.tokenizer, model.get("unk_token"))

    def unknown(self, text: str) -> list[str]:
        """Return the words of ``text`` of which some part has no id of its own."""
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


def token_id(tokenizer: Tokenizer, value: Any) -> int | None:
    """Of an id, a token, ``{"content": token}``, or a list, whose first counts."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, Mapping):
        value = value.get("content")
    if isinstance(value, str):
        token_id: int | None = tokenizer.token_to_id(value)
        return token_id
    return value if isinstance(value, int) else None
