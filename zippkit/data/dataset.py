"""A dataset is a folder: an Arrow file per split, the tokenizers of its ids, and a manifest with their hashes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

from zippkit.data.frame_tokenizer import FrameTokenizer, frame_tokenizer_class
from zippkit.data.frame_units import FrameUnits
from zippkit.data.manifest import Column, DatasetManifest, check_files, read_dataset_manifest
from zippkit.data.pixel_tokenizer import PixelTokenizer
from zippkit.data.speech_tokenizer import SpeechTokenizer, Vocoder, tokenizer_class
from zippkit.data.table import Encode, Example, Item, Split
from zippkit.data.text import ByteTokenizer, FileTokenizer
from zippkit.data.text_files import load_text_tokenizer
from zippkit.data.units import UnitTokenizer
from zippkit.errors import DataError, did_you_mean

__all__ = ["Dataset", "Example", "Item", "Split", "Tokenizer", "load_vocoder"]

Tokenizer: TypeAlias = ByteTokenizer | FileTokenizer | SpeechTokenizer | FrameTokenizer | PixelTokenizer

_HASH_AT_OPEN = 50 * 1024**2
"""A folder of fewer bytes is hashed whenever it is opened; that takes well under a second. The blocks of a larger one
are compared with their checksums as they are read."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """An opened dataset folder."""

    path: Path
    manifest: DatasetManifest

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read the manifest and compare the folder with it: sizes, tokenizers, and all contents if it is under 50 MB.

        A larger split is compared with its checksums as it is read.

        Raises:
            DataError: not a dataset, or a file is missing, cut short or changed; names each.
        """
        folder = Path(path)
        manifest = read_dataset_manifest(folder)
        check_files(folder, manifest, contents=sum(f.bytes for f in manifest.files.values()) < _HASH_AT_OPEN)
        return cls(folder, manifest)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.manifest.splits)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities."""
        return tuple(self.manifest.modalities)

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """Column to its tokenizer's fingerprint; None where there is no tokenizer: plain ids, and waveforms."""
        return {name: modality.fingerprint for name, modality in self.manifest.modalities.items()}

    def split(self, name: str) -> Split:
        """Return the examples of one split, which are read lazily.

        Raises:
            DataError: no such split.
        """
        if name not in self.manifest.splits:
            raise DataError(f"{self.path}: no split {name!r}{did_you_mean(name, self.splits)}")
        file = self.manifest.splits[name]
        entry = self.manifest.files[file]
        sums = None if entry.checksums is None else self.path / entry.checksums
        documents = self.manifest.documents
        return Split(self.path / file, self.modalities, entry.rows or 0, sums, self._encoder, documents)

    def _encoder(self, modality: str) -> Encode | None:
        """The way from a modality's text to ids; None where ids are its bytes."""
        return None if self.manifest.modalities[modality].kind == "bytes" else self.text_tokenizer(modality).encode

    def tokenizer(self, modality: str) -> Tokenizer:
        """Load the tokenizer that made the modality's ids.

        Raises:
            DataError: no such modality, it has none, or the file holds another than the manifest says.
        """
        if modality not in self.manifest.modalities:
            raise DataError(f"{self.path}: no modality {modality!r}{did_you_mean(modality, self.modalities)}")
        column = self.manifest.modalities[modality]
        tokenizer = _load_tokenizer(self.path, modality, column)
        if tokenizer.fingerprint != column.fingerprint:
            raise DataError(
                f"{self.path}: the {modality} tokenizer's fingerprint is {tokenizer.fingerprint}, "
                f"expected {column.fingerprint}"
            )
        if isinstance(tokenizer, SpeechTokenizer) and column.vocoder:
            return tokenizer.with_vocoder(load_vocoder(self.path / column.vocoder))
        return tokenizer

    def text_tokenizer(self, modality: str) -> ByteTokenizer | FileTokenizer:
        """Load the tokenizer of a text modality.

        Raises:
            DataError: as `tokenizer`, or the modality is not text.
        """
        tokenizer = self.tokenizer(modality)
        if isinstance(tokenizer, ByteTokenizer | FileTokenizer):
            return tokenizer
        raise DataError(f"{self.path}: {modality} holds {self.manifest.modalities[modality].kind}, expected text")

    def pixel_tokenizer(self, modality: str) -> PixelTokenizer:
        """Load the tokenizer of an image modality.

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


def _load_tokenizer(folder: Path, name: str, column: Column) -> Tokenizer:
    if column.kind == "bytes":
        return ByteTokenizer()
    if column.kind in ("waveform", "features"):
        raise DataError(f"{folder}: {name} holds {column.told}, which have no tokenizer")
    if column.file is None:
        raise DataError(f"{folder}: {name} came as plain ids, without a tokenizer")
    if column.kind == "units":
        return tokenizer_class(column.tokenizer or UnitTokenizer.kind).load(folder / column.file)
    if column.kind == "codes":
        return frame_tokenizer_class(column.tokenizer or FrameUnits.kind).load(folder / column.file)
    if column.kind == "pixels":
        return PixelTokenizer.load(folder / column.file)
    return load_text_tokenizer(folder / column.file, column.begin, column.end)


def load_vocoder(path: str | Path) -> Vocoder:
    """Load a vocoder's file; imports torch, which reading a dataset without a vocoder does not.

    Raises:
        DataError: not a readable vocoder.
    """
    from zippkit.data.speech.vocoder import UnitVocoder

    return UnitVocoder.load(path)
