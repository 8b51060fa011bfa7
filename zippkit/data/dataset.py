"""A dataset is a folder: a Parquet file per split, the tokenizers of its ids, and a manifest with their hashes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

from zippkit.data.checksums import Checksums, write_checksums
from zippkit.data.images import PixelTokenizer
from zippkit.data.manifest import (
    DATASET_MANIFEST,
    Column,
    DatasetManifest,
    FileEntry,
    Skipped,
    check_files,
    read_dataset_manifest,
    sha256_of,
)
from zippkit.data.rows import Columns, Kind, write_rows
from zippkit.data.speech_tokenizer import SpeechTokenizer, load_vocoder, tokenizer_class
from zippkit.data.table import Example, Item, Split
from zippkit.data.text import ByteTokenizer, FileTokenizer, load_text_tokenizer
from zippkit.data.units import UnitTokenizer
from zippkit.errors import DataError, did_you_mean
from zippkit.system.files import appearing, write_text

__all__ = ["Dataset", "Example", "Item", "Split", "Tokenizer", "write_dataset"]

Tokenizer: TypeAlias = ByteTokenizer | FileTokenizer | SpeechTokenizer | PixelTokenizer

_HASH_AT_OPEN = 50 * 1024**2
"""A folder of fewer bytes is hashed whenever it is opened; that takes well under a second. The row groups of a larger
one are compared with their checksums as they are read."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """An opened dataset folder."""

    path: Path
    manifest: DatasetManifest

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read the manifest and compare the folder with it: sizes, tokenizers, and all contents if it is under 50 MB;
        what is read of a larger split is compared with its checksums then.

        Raises:
            DataError: not a dataset, or a file is missing, cut short or changed; names each.
        """
        folder = Path(path)
        manifest = read_dataset_manifest(folder)
        check_files(folder, manifest, contents=sum(f.bytes for f in manifest.files.values()) < _HASH_AT_OPEN)
        return cls(folder, manifest)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.manifest.splits)

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.manifest.modalities)

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """Column to its tokenizer's fingerprint; None where there is no tokenizer: plain ids, and waveforms."""
        return {name: modality.fingerprint for name, modality in self.manifest.modalities.items()}

    def split(self, name: str) -> Split:
        """The examples of one split; nothing is read yet.

        Raises:
            DataError: no such split.
        """
        if name not in self.manifest.splits:
            raise DataError(f"{self.path}: no split {name!r}{did_you_mean(name, self.splits)}")
        file = self.manifest.splits[name]
        entry = self.manifest.files[file]
        sums = None if entry.checksums is None else Checksums(self.path / file, self.path / entry.checksums)
        return Split(self.path / file, self.modalities, entry.rows or 0, sums)

    def tokenizer(self, modality: str) -> Tokenizer:
        """The tokenizer that the modality's ids are of.

        Raises:
            DataError: no such modality, it has none, or the file holds another than the manifest says.
        """
        if modality not in self.manifest.modalities:
            raise DataError(f"{self.path}: no modality {modality!r}{did_you_mean(modality, self.modalities)}")
        entry = self.manifest.modalities[modality]
        tokenizer: Tokenizer
        if entry.kind == "bytes":
            tokenizer = ByteTokenizer()
        elif entry.kind == "waveform":
            raise DataError(f"{self.path}: {modality} holds waveforms, which have no tokenizer")
        elif entry.file is None:
            raise DataError(f"{self.path}: {modality} came as plain ids, without a tokenizer")
        elif entry.kind == "units":
            tokenizer = tokenizer_class(entry.tokenizer or UnitTokenizer.kind).load(self.path / entry.file)
        elif entry.kind == "pixels":
            tokenizer = PixelTokenizer.load(self.path / entry.file)
        else:
            tokenizer = load_text_tokenizer(self.path / entry.file, entry.begin, entry.end)
        if tokenizer.fingerprint != entry.fingerprint:
            raise DataError(
                f"{self.path}: the {modality} tokenizer's fingerprint is {tokenizer.fingerprint}, "
                f"expected {entry.fingerprint}"
            )
        if isinstance(tokenizer, SpeechTokenizer) and entry.vocoder:
            return tokenizer.with_vocoder(load_vocoder(self.path / entry.vocoder))
        return tokenizer

    def text_tokenizer(self, modality: str) -> ByteTokenizer | FileTokenizer:
        """The tokenizer of a modality that is text.

        Raises:
            DataError: as `tokenizer`, or the modality is not text.
        """
        tokenizer = self.tokenizer(modality)
        if isinstance(tokenizer, ByteTokenizer | FileTokenizer):
            return tokenizer
        raise DataError(f"{self.path}: {modality} holds {self.manifest.modalities[modality].kind}, expected text")

    def pixel_tokenizer(self, modality: str) -> PixelTokenizer:
        """The tokenizer of a modality that is images.

        Raises:
            DataError: as `tokenizer`, or the modality is not pixels.
        """
        tokenizer = self.tokenizer(modality)
        if isinstance(tokenizer, PixelTokenizer):
            return tokenizer
        raise DataError(f"{self.path}: {modality} holds {self.manifest.modalities[modality].kind}, expected pixels")

    def verify(self) -> None:
        """Hash every file, whatever the size.

        Raises:
            DataError: names each file that is not what was written.
        """
        check_files(self.path, self.manifest, contents=True)


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
        splits: name to examples, each read once and not kept.
        tokenizers: modality to tokenizer; a modality of text without one is bytes, one of ids without one is plain ids.
        waveforms: modalities of waveforms, and their samples a second.
        source: where the examples came from, JSON values.
        skipped: (id, reason) of recordings that could not be used.
        partial: an example may lack a modality that is named in either; a task passes over examples without one of its.

    Raises:
        DataError: ``path`` exists (with ``overwrite``: exists and is not a dataset), or the examples do not agree.
    """
    target = Path(path)
    refuse_to_overwrite(target, overwrite)
    wrong = [name for name in splits if not name.isidentifier()]
    if wrong or not splits:
        raise DataError(f"splits {wrong or 'are missing'}; expected names of letters, digits and underscores")
    target.parent.mkdir(parents=True, exist_ok=True)
    with appearing(target) as folder:
        folder.mkdir()
        files: dict[str, FileEntry] = {}
        written: dict[str, Columns] = {}
        kinds = _kinds(tokenizers, waveforms or {})
        for name, examples in splits.items():
            written[name] = write_rows(folder / f"{name}.parquet", examples, kinds, partial)
            _check_alike(next(iter(written.values())), written[name], name)
            sums = f"{name}.crc32"
            write_checksums(folder / f"{name}.parquet", folder / sums)
            files[f"{name}.parquet"] = _entry(folder / f"{name}.parquet", written[name].n_examples, sums)
            files[sums] = _entry(folder / sums)
        largest = _over_all(written.values())
        unused = [name for name in kinds if name not in largest]
        if unused:
            what = "tokenizer" if unused[0] in tokenizers else "sample rate"
            raise DataError(f"{what} for {unused[0]!r}, which no example has{did_you_mean(unused[0], largest)}")
        modalities = {
            name: Column(kind="waveform", sample_rate=waveforms[name])
            if waveforms and name in waveforms
            else _save_modality(folder, name, tokenizers.get(name), most)
            for name, most in largest.items()
        }
        write_text(folder / "README.md", _card(splits))
        # The card is for people to edit, so it is not among the files that are hashed.
        files |= {file: _entry(folder / file) for m in modalities.values() for file in m.all_files}
        manifest = DatasetManifest(
            splits={name: f"{name}.parquet" for name in splits},
            modalities=modalities,
            files=files,
            source=dict(source or {}),
            skipped=[Skipped(id=id_, reason=reason) for id_, reason in skipped],
        )
        write_text(folder / DATASET_MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return Dataset(target, manifest)


def _kinds(tokenizers: Mapping[str, Tokenizer], waveforms: Mapping[str, int]) -> dict[str, Kind]:
    """What is known of modalities before any example is read."""
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


def _over_all(written: Collection[Columns]) -> dict[str, int | None]:
    """Modalities that some example has, and their largest id over all splits; None for those that are not ids."""
    largest: dict[str, int | None] = {}
    for columns in written:
        for name, n_rows in columns.n_rows.items():
            if n_rows:
                most = columns.largest.get(name)
                largest[name] = None if most is None else max(most, largest.get(name) or 0)
    return largest


def _is_text(tokenizer: Tokenizer) -> bool:
    return isinstance(tokenizer, ByteTokenizer | FileTokenizer)


def _save_modality(folder: Path, name: str, tokenizer: Tokenizer | None, largest: int | None) -> Column:
    """Write the tokenizer's file, if it needs one; ``largest`` is the modality's largest id, None for text."""
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
            **(_of_speech(folder, name, tokenizer) if isinstance(tokenizer, SpeechTokenizer) else {}),
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


def _of_speech(folder: Path, name: str, tokenizer: SpeechTokenizer) -> dict[str, str | None]:
    """What a manifest says of speech alone; writes the vocoder, if there is one.

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
    """Front matter from which ``datasets.load_dataset`` knows the splits; by file names it would rename ``dev``."""
    files = "".join(f"  - split: {name}\n    path: {name}.parquet\n" for name in splits)
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
