"""Load a text tokenizer from a file, and find the begin and end tokens that frame its segments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zippkit.data.text import FRAME_TOKENS, ByteTokenizer, FileTokenizer, token_id
from zippkit.errors import DataError
from zippkit.system.files import parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_text_tokenizer(
    path: str | Path, begin: int | None = None, end: int | None = None
) -> ByteTokenizer | FileTokenizer:
    """Load ``"bytes"``, a ``tokenizer.json``, or the one in a folder.

    Args:
        path: ``"bytes"``, the file, or its folder.
        begin: id that opens a segment; left out, it is found with ``end`` in the ``tokenizer_config.json`` or
            ``config.json`` beside the file, or by the usual names in its vocabulary (``FRAME_TOKENS``).
        end: id that closes a segment.

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
        ids = [token_id(tokenizer, settings.get(f"{which}_token{suffix}")) for which in ("bos", "eos")]
        if ids[0] is not None and ids[1] is not None:
            yield ids[0], ids[1]


def _frames_by_name(tokenizer: Tokenizer) -> Iterator[tuple[int, int]]:
    for pair in FRAME_TOKENS:
        begin, end = (tokenizer.token_to_id(token) for token in pair)
        if begin is not None and end is not None:
            yield begin, end


def _json_object(content: str) -> dict[str, Any]:
    try:
        parsed = parse_json(content)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
