"""What a manifest says of a modality, and the files of its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zippkit.data.dataset import Tokenizer
from zippkit.data.discrete_tokenizer import DiscreteTokenizer, registered
from zippkit.data.forms import Form
from zippkit.data.manifest import Column
from zippkit.data.pixel_tokenizer import PixelTokenizer
from zippkit.data.rows import Columns
from zippkit.data.speech_tokenizer import SpeechTokenizer
from zippkit.data.text import ByteTokenizer, FileTokenizer
from zippkit.data.units import UnitTokenizer
from zippkit.errors import DataError


def tokenizer_form(tokenizer: Tokenizer) -> Form:
    """How what a tokenizer makes, or is given, is stored."""
    if isinstance(tokenizer, FileTokenizer):
        return Form("text", tokenizer.vocab_size, encode=tokenizer.encode)
    return Form("text" if isinstance(tokenizer, ByteTokenizer) else "ids", tokenizer.vocab_size)


def save_column(
    folder: Path,
    name: str,
    form: Form,
    tokenizer: Tokenizer | None,
    sample_rate: int | None,
    written: Sequence[Columns],
) -> Column:
    """Write a modality's tokenizer, if it has one, and describe the modality.

    Args:
        folder: the dataset.
        name: of the modality.
        form: how it is stored.
        tokenizer: None for bytes of text, plain ids, waveforms and features.
        sample_rate: of waveforms, in Hz.
        written: what each split holds.

    Raises:
        DataError: the tokenizer is not of such things, or does not know the ids.
    """
    if form.kind == "waveform":
        return Column(kind="waveform", sample_rate=sample_rate)
    if form.kind == "features":
        ranges = [columns.ranges[name] for columns in written if name in columns.ranges]
        least, most = (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else (None, None)
        return Column(kind="features", shape=list(form.shape), least=least, most=most)
    largest = max(columns.largest[name] for columns in written) if form.kind == "ids" else None
    return _save_tokenizer(folder, name, tokenizer, largest)


def _is_text(tokenizer: Tokenizer) -> bool:
    return isinstance(tokenizer, ByteTokenizer | FileTokenizer)


def _save_tokenizer(folder: Path, name: str, tokenizer: Tokenizer | None, largest: int | None) -> Column:
    """Write the tokenizer's file, if it needs one, and describe the column.

    Args:
        folder: the dataset.
        name: of the modality.
        tokenizer: None for bytes of text and for plain ids.
        largest: the modality's largest id; None for text.
    """
    if tokenizer is None and largest is not None:
        return Column(kind="ids", vocab_size=max(1, largest + 1))
    tokenizer = tokenizer or ByteTokenizer()
    if (largest is None) != _is_text(tokenizer):
        raise DataError(f"{name} is {'text' if largest is None else 'ids'}, its tokenizer a {type(tokenizer).__name__}")
    for cls, what in ((DiscreteTokenizer, "units"), (PixelTokenizer, "levels")):
        if isinstance(tokenizer, cls) and (largest or 0) >= tokenizer.begin:
            raise DataError(f"{name} has id {largest}, its tokenizer only {tokenizer.begin} {what}")
    kind, suffix = _kind_and_suffix(tokenizer)
    file = f"tokenizers/{name}{suffix}" if suffix else None
    if file:
        (folder / file).parent.mkdir(exist_ok=True)
        tokenizer.save(folder / file)
    return Column.model_validate(
        {
            "kind": kind,
            "file": file,
            **_kind_entries(folder, name, tokenizer),
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "begin": tokenizer.begin,
            "end": tokenizer.end,
        }
    )


def _kind_and_suffix(tokenizer: Tokenizer) -> tuple[str, str | None]:
    if isinstance(tokenizer, DiscreteTokenizer):
        return "units" if isinstance(tokenizer, SpeechTokenizer) else "codes", tokenizer.suffix
    by_class: dict[type, tuple[str, str | None]] = {
        ByteTokenizer: ("bytes", None),
        FileTokenizer: ("tokenizer_json", ".json"),
        PixelTokenizer: ("pixels", ".json"),
    }
    return by_class[type(tokenizer)]


def _kind_entries(folder: Path, name: str, tokenizer: Tokenizer) -> dict[str, str | None]:
    """Return the manifest entries of registered kinds only, and write the vocoder, if there is one.

    Raises:
        DataError: the tokenizer's kind is not registered, so that nobody could load it again.
    """
    if not isinstance(tokenizer, DiscreteTokenizer):
        return {}
    if registered(tokenizer.kind, DiscreteTokenizer, name) is not type(tokenizer):  # type: ignore[type-abstract]
        raise DataError(f"{name}: {type(tokenizer).__name__} is not what is registered as {tokenizer.kind!r}")
    vocoder = None
    if isinstance(tokenizer, SpeechTokenizer) and tokenizer.vocoder is not None:
        vocoder = f"tokenizers/{name}.vocoder.safetensors"
        tokenizer.vocoder.save(folder / vocoder)
    # Left out for the first kind there was, so that what was written before there were others compares equal.
    return {"tokenizer": None if tokenizer.kind == UnitTokenizer.kind else tokenizer.kind, "vocoder": vocoder}
