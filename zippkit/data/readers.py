"""Corpora as they lie on disk: where each recording is, who speaks, what is said, and which split it belongs to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from zippkit.data.records import File, Record, spoken
from zippkit.errors import DataError, did_you_mean

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FRACTIONS = {"train": 0.9, "dev": 0.05, "test": 0.05}


Reader = Callable[..., Iterator[Record]]
"""Called with the corpus's root folder and the reader's own options."""


def librispeech(root: str | Path) -> Iterator[Record]:
    """``<split>/<speaker>/<chapter>/<id>.flac``, transcripts in ``<speaker>-<chapter>.trans.txt`` beside them.

    The split is the folder's name up to its first dash: ``train-clean-100`` is train.
    """
    for split, folder in _split_folders(root):
        for chapter in _folders(folder, depth=2):
            speaker = chapter.parent.name
            said = _transcripts(chapter / f"{speaker}-{chapter.name}.trans.txt")
            # A transcript without its sound file is a recording too, so that it is reported and not lost.
            for id_ in sorted(said.keys() | {path.stem for path in chapter.glob("*.flac")}):
                yield spoken(id_, split, (chapter / f"{id_}.flac",), said.get(id_), speaker)


def libritts(root: str | Path) -> Iterator[Record]:
    """``<split>/<speaker>/<chapter>/<id>.wav``, each with its ``<id>.normalized.txt``; splits as for LibriSpeech."""
    for split, folder in _split_folders(root):
        for chapter in _folders(folder, depth=2):
            for path in sorted(chapter.glob("*.wav")):
                text = _read_text(path.with_suffix(".normalized.txt"))
                yield spoken(path.stem, split, (path,), text, chapter.parent.name)


def pairs(
    root: str | Path, fractions: Mapping[str, float] | None = None, seed: int = 0, speaker: str | None = None
) -> Iterator[Record]:
    """``.wav`` or ``.flac`` files anywhere under ``root``, each with a ``.txt`` of the same name beside it.

    Args:
        root: the corpus's folder.
        fractions: split to its share, adding up to 1. The split is drawn from the words alone, so that recordings of
            the same prompt stay together.
        seed: another seed draws other splits.
        speaker: left out, the name of the folder that a file lies in.
    """
    fractions = FRACTIONS if fractions is None else dict(fractions)
    if not np.isclose(sum(fractions.values()), 1) or min(fractions.values()) < 0:
        raise DataError(f"fractions {fractions} add up to {sum(fractions.values()):g}, expected 1")
    base = _existing(root)
    for path in sorted(p for p in base.rglob("*") if p.suffix.lower() in (".wav", ".flac")):
        text = _read_text(path.with_suffix(".txt"))
        split = _split_of(text or "", fractions, seed)
        id_ = path.relative_to(base).with_suffix("").as_posix()
        yield spoken(id_, split, (path,), text, speaker or path.parent.resolve().name)


def fsdd(
    root: str | Path, max_digits: int = 1, counts: Mapping[str, int] | None = None, seed: int = 0
) -> Iterator[Record]:
    """Free Spoken Digit Dataset, ``{digit}_{speaker}_{index}.wav``: the digits, or strings joined from one speaker's.

    Recordings 0-4 of a speaker are test (the corpus's own rule), 5-9 dev, the others train; a string never mixes them.

    Args:
        root: the corpus's folder.
        max_digits: longest string; 1 gives every recording once, and then ``counts`` must be left out.
        counts: split to its number of strings, of 1 to ``max_digits`` digits; 2000, 200 and 300 if left out.
        seed: another seed draws other strings.
    """
    base = _existing(root)
    if max_digits < 1:
        raise DataError(f"max_digits is {max_digits}, expected 1 or more")
    base = base / "recordings" if (base / "recordings").is_dir() else base
    singles = [single for path in sorted(base.glob("*.wav")) if (single := _fsdd_file(path))]
    if max_digits == 1:
        if counts is not None:
            raise DataError("counts are for strings of digits; leave them out or set max_digits above 1")
        yield from singles
        return
    for split, count in (counts or {"train": 2000, "dev": 200, "test": 300}).items():
        yield from _joined([single for single in singles if single.split == split], split, count, max_digits, seed)


READERS: dict[str, Reader] = {"fsdd": fsdd, "libritts": libritts, "librispeech": librispeech, "pairs": pairs}


def reader(kind: str) -> Reader:
    """The reader of that name.

    Raises:
        DataError: there is none; names the nearest.
    """
    if kind not in READERS:
        raise DataError(f"no corpus kind {kind!r}{did_you_mean(kind, READERS)}")
    return READERS[kind]


def _joined(pool: list[Record], split: str, count: int, max_digits: int, seed: int) -> Iterator[Record]:
    if not pool and count:
        raise DataError(f"no recordings for {split}; expected {{digit}}_{{speaker}}_{{index}}.wav")
    # A stream per split: asking for more strings of one leaves the others as they were.
    rng = np.random.default_rng([seed, *split.encode()])
    speakers = sorted({single.speaker for single in pool})
    by_speaker = {speaker: [single for single in pool if single.speaker == speaker] for speaker in speakers}
    for index in range(count):
        speaker = speakers[rng.integers(len(speakers))]
        own = by_speaker[speaker]
        chosen = [own[i] for i in rng.integers(len(own), size=rng.integers(1, max_digits + 1))]
        files: tuple[File, ...] = tuple(file for single in chosen for file in single.files)
        text = " ".join(single.text or "" for single in chosen)
        yield spoken(f"{split}-{index:05d}", split, files, text, speaker)


def _fsdd_file(path: Path) -> Record | None:
    match = re.fullmatch(r"(\d)_(.+)_(\d+)", path.stem)
    if match is None:
        return None
    index = int(match[3])
    split = "test" if index < 5 else "dev" if index < 10 else "train"
    return spoken(path.stem, split, (path,), DIGITS[int(match[1])], match[2])


def _split_of(text: str, fractions: Mapping[str, float], seed: int) -> str:
    words = " ".join(re.findall(r"\w+", text.casefold()))
    digest = hashlib.sha256(f"{seed} {words}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for split, fraction in fractions.items():
        place -= fraction
        if place < 0:
            return split
    return list(fractions)[-1]  # rounding left a little over


def _existing(root: str | Path) -> Path:
    if not Path(root).is_dir():
        raise DataError(f"{root}: no such folder")
    return Path(root)


def _split_folders(root: str | Path) -> Iterator[tuple[str, Path]]:
    base = _existing(root)
    found = [folder for folder in _folders(base, depth=1) if folder.name.split("-")[0] in FRACTIONS]
    if not found:
        raise DataError(f"{base}: no folder named train-*, dev-* or test-*; the root is the folder that holds them")
    return ((folder.name.split("-")[0], folder) for folder in found)


def _folders(root: Path, depth: int) -> list[Path]:
    return sorted(path for path in root.glob("/".join("*" * depth)) if path.is_dir())


def _transcripts(path: Path) -> dict[str, str]:
    lines = (_read_text(path) or "").splitlines()
    return {id_: text.strip() for id_, _, text in (line.partition(" ") for line in lines) if id_}


def _read_text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
