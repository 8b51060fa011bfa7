"""A dataset folder's ``manifest.json``, and whether the files beside it agree."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from zippkit.errors import DataError, did_you_mean
from zippkit.spec.kinds import Strict
from zippkit.system.files import inside

DATASET_MANIFEST = "manifest.json"


class FileEntry(Strict):
    """One file of the folder."""

    sha256: str = Field(description="Of its content, hexadecimal.")
    bytes: int = Field(ge=0, description="Its size.")
    rows: int | None = Field(None, ge=0, description="Examples in it, of a split.")
    checksums: str | None = Field(
        None, description="File with the checksums of its blocks or row groups, of a split; the oldest have none."
    )


class Column(Strict):
    """One column of the splits, and what its ids or samples mean."""

    kind: Literal["bytes", "tokenizer_json", "units", "codes", "pixels", "ids", "waveform", "features"] = Field(
        description="`units` are of sound, `codes` of frames of floats; `ids` are plain integers that no tokenizer of "
        "zippkit's made; `waveform` are samples and `features` frames of floats, not ids."
    )
    file: str | None = Field(None, description="The tokenizer, relative to the folder.")
    tokenizer: str | None = Field(
        None, description="Registered kind of the tokenizer, of units and codes; `mel_units` if left out."
    )
    vocoder: str | None = Field(None, description="The trained way back to sound, relative to the folder; of units.")
    fingerprint: str | None = Field(None, description="The tokenizer's, of everything that decides what an id means.")
    vocab_size: int | None = Field(
        None, gt=0, description="Number of ids, begin and end included where the tokenizer has them; of ids only."
    )
    sample_rate: int | None = Field(None, gt=0, description="Samples a second; of waveforms only.")
    shape: list[int] | None = Field(None, description="Shape of one frame; of features only.")
    least: float | None = Field(None, description="Smallest value; of features only.")
    most: float | None = Field(None, description="Largest value; of features only.")
    begin: int | None = Field(None, description="Id that opens a segment.")
    end: int | None = Field(None, description="Id that closes a segment.")

    @model_validator(mode="after")
    def _ids_or_samples(self) -> Self:
        needed = {"waveform": "sample_rate", "features": "shape"}.get(self.kind, "vocab_size")
        for key in ("vocab_size", "sample_rate", "shape"):
            if (getattr(self, key) is None) == (key == needed):
                raise ValueError(f"{self.kind}: {key} is {'missing' if key == needed else 'not for it'}")
        return self

    @property
    def told(self) -> str:
        """What the column holds, for messages."""
        words = {"bytes": "text", "tokenizer_json": "text", "ids": "token ids", "waveform": "waveforms"}
        return words.get(self.kind, self.kind)

    @property
    def is_text(self) -> bool:
        """Whether the column holds text, which its tokenizer turns into ids when it is used."""
        return self.kind in ("bytes", "tokenizer_json")

    @property
    def all_files(self) -> list[str]:
        """The tokenizer and the vocoder, where there are such."""
        return [file for file in (self.file, self.vocoder) if file]


class Skipped(Strict):
    """A recording that could not be used."""

    id: str
    reason: str


class DatasetManifest(Strict):
    """The whole file."""

    format_version: Literal[1, 2] = Field(2, description="Splits are Parquet files in 1, Arrow files in 2.")
    documents: bool = Field(False, description="Whether each row is a document: a list of segments.")
    splits: dict[str, str] = Field(description="Name of a split to its file.")
    modalities: dict[str, Column]
    files: dict[str, FileEntry] = Field(description="Splits and tokenizers, relative to the folder.")
    source: dict[str, Any] = Field(default_factory=dict, description="Where the examples came from.")
    skipped: list[Skipped] = Field(default_factory=list)


def read_dataset_manifest(folder: Path) -> DatasetManifest:
    """The folder's manifest.

    Raises:
        DataError: there is none, it is broken, or it names files that it does not describe.
    """
    path = folder / DATASET_MANIFEST
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if not path.is_file():
        raise DataError(f"{folder}: not a dataset, or one half written: {DATASET_MANIFEST} is missing")
    try:
        manifest = DatasetManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise DataError(f"{path}: not a dataset's manifest ({where})") from None
    for name in manifest.files:
        try:
            inside(folder, name)
        except ValueError as error:
            raise DataError(f"{path}: files: {error}") from None
    named = [*manifest.splits.values(), *(file for m in manifest.modalities.values() for file in m.all_files)]
    named += [entry.checksums for entry in manifest.files.values() if entry.checksums is not None]
    missing = sorted(set(named) - manifest.files.keys())
    if missing:
        raise DataError(f"{path}: nothing under `files` for {', '.join(missing)}")
    return manifest


def check_files(folder: Path, manifest: DatasetManifest, contents: bool) -> None:
    """Compare the folder with its manifest: sizes and hashes, of splits hashes only if ``contents``.

    Raises:
        DataError: names every file that is missing, of another size, or of another content.
    """
    wrong = []
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif path.stat().st_size != entry.bytes:
            wrong.append(f"{name} has {path.stat().st_size} bytes, expected {entry.bytes}")
        elif (contents or entry.rows is None) and sha256_of(path) != entry.sha256:
            wrong.append(f"{name} is not what was written (its SHA-256 differs from the manifest's)")
    if wrong:
        raise DataError(f"{folder}: {'; '.join(wrong)}")


def sha256_of(path: Path) -> str:
    """Hexadecimal, of the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_dataset(path: str | Path) -> bool:
    """Whether a folder is a dataset's."""
    return (Path(path) / DATASET_MANIFEST).is_file()


def tokenized_column(folder: str | Path, modality: str) -> Column:
    """What a dataset's manifest says of a modality whose tokenizer is to be used again.

    Raises:
        DataError: the dataset has no such modality, or no tokenizer made it.
    """
    columns = read_dataset_manifest(Path(folder)).modalities
    if modality not in columns:
        raise DataError(f"{folder}: no modality {modality!r} to take the tokenizer of{did_you_mean(modality, columns)}")
    column = columns[modality]
    if column.file is None and column.kind != "bytes":
        raise DataError(f"{folder}: {modality} has no tokenizer ({column.kind}); expected another dataset, or a file")
    return column
