"""Write a dataset folder: a Parquet file and checksums per split, tokenizers, a manifest and a card."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zippkit.data.checksums import write_checksums
from zippkit.data.dataset import Dataset, Tokenizer
from zippkit.data.manifest import DATASET_MANIFEST, Column, DatasetManifest, FileEntry, Skipped, sha256_of
from zippkit.data.pixel_tokenizer import PixelTokenizer
from zippkit.data.rows import Columns, Kind, write_rows
from zippkit.data.speech_tokenizer import SpeechTokenizer, tokenizer_class
from zippkit.data.table import Example
from zippkit.data.text import ByteTokenizer, FileTokenizer
from zippkit.data.units import UnitTokenizer
from zippkit.errors import DataError, did_you_mean
from zippkit.system.files import appearing, write_text

_SPLIT = re.compile(r"[^\W\d][\w-]*")


def write_dataset(
    path: str | Path,
    splits: Mapping[str, Iterable[Example]],
    tokenizers: Mapping[str, Tokenizer],
    *,
    waveforms: Mapping[str, int] | None = None,
    source: Mapping[str, Any] | None = None,
    skipped: Sequence[tuple[str, str]] = (),
    partial: bool = False,
    overwrite: bool = False,
) -> Dataset:
    """Write a dataset folder; it appears under ``path`` complete or not at all.

    Args:
        path: the folder to write.
        splits: name to examples, each read once and not kept.
        tokenizers: modality to tokenizer; a modality of text without one is bytes, one of ids without one is plain ids.
        waveforms: modalities of waveforms, and their samples a second.
        source: where the examples came from, JSON values.
        skipped: (id, reason) of recordings that could not be used.
        partial: an example may lack a modality that is named in either; a task passes over examples without one of its.
        overwrite: replace a dataset that is there.

    Raises:
        DataError: ``path`` exists (with ``overwrite``: exists and is not a dataset), or the examples do not agree.
    """
    target = Path(path)
    refuse_to_overwrite(target, overwrite)
    wrong = [name for name in splits if not _SPLIT.fullmatch(name)]
    if wrong or not splits:
        raise DataError(f"splits {wrong or 'are missing'}; expected names of letters, digits, underscores and dashes")
    target.parent.mkdir(parents=True, exist_ok=True)
    with appearing(target) as folder:
        folder.mkdir()
        kinds = _kinds(tokenizers, waveforms or {})
        files, largest = _write_splits(folder, splits, kinds, partial)
        _refuse_unused(kinds, largest, tokenizers)
        columns = {
            name: Column(kind="waveform", sample_rate=waveforms[name])
            if waveforms and name in waveforms
            else _save_tokenizer(folder, name, tokenizers.get(name), most)
            for name, most in largest.items()
        }
        # The card is for people to edit, so it is not among the files that are hashed.
        write_text(folder / "README.md", _card(splits))
        files |= {file: _entry(folder / file) for column in columns.values() for file in column.all_files}
        manifest = DatasetManifest(
            splits={name: f"{name}.parquet" for name in splits},
            modalities=columns,
            files=files,
            source=dict(source or {}),
            skipped=[Skipped(id=id_, reason=reason) for id_, reason in skipped],
        )
        write_text(folder / DATASET_MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return Dataset(target, manifest)


def _write_splits(
    folder: Path, splits: Mapping[str, Iterable[Example]], kinds: Mapping[str, Kind], partial: bool
) -> tuple[dict[str, FileEntry], dict[str, int | None]]:
    """Write the splits; return their files, and each modality's largest id as `_largest_ids` has it."""
    files: dict[str, FileEntry] = {}
    written: dict[str, Columns] = {}
    for name, examples in splits.items():
        table, checksums = f"{name}.parquet", f"{name}.crc32"
        written[name] = write_rows(folder / table, examples, kinds, partial)
        _check_alike(next(iter(written.values())), written[name], name)
        write_checksums(folder / table, folder / checksums)
        files[table] = _entry(folder / table, written[name].n_examples, checksums)
        files[checksums] = _entry(folder / checksums)
    return files, _largest_ids(written.values())


def _refuse_unused(kinds: Mapping[str, Kind], found: Mapping[str, Any], tokenizers: Mapping[str, Tokenizer]) -> None:
    unused = [name for name in kinds if name not in found]
    if unused:
        what = "tokenizer" if unused[0] in tokenizers else "sample rate"
        raise DataError(f"{what} for {unused[0]!r}, which no example has{did_you_mean(unused[0], found)}")


def _kinds(tokenizers: Mapping[str, Tokenizer], waveforms: Mapping[str, int]) -> dict[str, Kind]:
    """Return the kinds of the modalities that have a tokenizer or a sample rate."""
    both = tokenizers.keys() & waveforms.keys()
    if both:
        raise DataError(f"{min(both)} has a tokenizer and a sample rate; expected one of them")
    kinds: dict[str, Kind] = {name: "text" if _is_text(tokenizer) else "ids" for name, tokenizer in tokenizers.items()}
    return kinds | dict.fromkeys(waveforms, "waveform")


def _check_alike(first: Columns, other: Columns, split: str) -> None:
    if first.kinds != other.kinds:
        expected = sorted(first.kinds)
        raise DataError(
            f"split {split!r} has {sorted(other.kinds)}, expected {expected} as in the others, text as text"
        )


def _largest_ids(written: Collection[Columns]) -> dict[str, int | None]:
    """Return the largest id over all splits of each modality that some example has; None if it is not ids."""
    largest: dict[str, int | None] = {}
    for columns in written:
        for name, n_rows in columns.n_rows.items():
            if n_rows:
                most = columns.largest.get(name)
                largest[name] = None if most is None else max(most, largest.get(name) or 0)
    return largest


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
    for cls, what in ((SpeechTokenizer, "units"), (PixelTokenizer, "levels")):
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
            **(_save_vocoder(folder, name, tokenizer) if isinstance(tokenizer, SpeechTokenizer) else {}),
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "begin": tokenizer.begin,
            "end": tokenizer.end,
        }
    )


def _kind_and_suffix(tokenizer: Tokenizer) -> tuple[str, str | None]:
    if isinstance(tokenizer, SpeechTokenizer):
        return "units", tokenizer.suffix
    by_class: dict[type, tuple[str, str | None]] = {
        ByteTokenizer: ("bytes", None),
        FileTokenizer: ("tokenizer_json", ".json"),
        PixelTokenizer: ("pixels", ".json"),
    }
    return by_class[type(tokenizer)]


def _save_vocoder(folder: Path, name: str, tokenizer: SpeechTokenizer) -> dict[str, str | None]:
    """Return the manifest entries of speech only, and write the vocoder, if there is one.

    Raises:
        DataError: the tokenizer's kind is not registered, so that nobody could load it again.
    """
    if tokenizer_class(tokenizer.kind) is not type(tokenizer):
        raise DataError(f"{name}: {type(tokenizer).__name__} is not what is registered as {tokenizer.kind!r}")
    vocoder = None
    if tokenizer.vocoder is not None:
        vocoder = f"tokenizers/{name}.vocoder.safetensors"
        tokenizer.vocoder.save(folder / vocoder)
    # Left out for the first kind there was, so that what was written before there were others compares equal.
    return {"tokenizer": None if tokenizer.kind == UnitTokenizer.kind else tokenizer.kind, "vocoder": vocoder}


def _entry(path: Path, rows: int | None = None, checksums: str | None = None) -> FileEntry:
    return FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size, rows=rows, checksums=checksums)


def _card(splits: Iterable[str]) -> str:
    """Return a card whose front matter names the splits for ``datasets.load_dataset``.

    From the file names alone it would rename ``dev``; a split's name must not have dashes there.
    """
    files = "".join(f"  - split: {name.replace('-', '_')}\n    path: {name}.parquet\n" for name in splits)
    return f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\nA dataset written by zippkit.\n"


def refuse_to_overwrite(target: Path, overwrite: bool) -> None:
    """Raise DataError if ``target`` exists, unless it is a dataset and to be overwritten."""
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise DataError(f"{target} exists already; overwrite=True (--overwrite) replaces it")
    if not (target / DATASET_MANIFEST).is_file():
        raise DataError(
            f"{target} is not a dataset ({DATASET_MANIFEST} is missing), so it is not overwritten; remove it yourself"
        )
