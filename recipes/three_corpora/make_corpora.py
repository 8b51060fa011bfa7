"""Make a folder that is laid out like LibriSpeech of a folder of recordings and texts, with clean and other test sets.

    python recipes/three_corpora/make_corpora.py path/to/folder --out data/corpora

takes .wav or .flac files with a .txt beside each (the voice "kathleen", CC0, is such a folder) and writes
``LibriSpeech/{train,dev,test}-clean`` and ``LibriSpeech/test-other``. What is clean is links to the recordings, so
nothing is copied or converted; .wav files are written as .flac. ``test-other`` holds the recordings of ``test-clean``
once more, harder to understand: played 1.15 times as fast, by which the voice rises as well, with white noise 10 dB
below the speech. The splits are drawn from the words, so nothing that is said in one is said in another.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from zippkit.data.audio import Wave, read_audio, resample, write_audio
from zippkit.data.readers import read
from zippkit.data.records import Record
from zippkit.errors import DataError, ZippkitError

FASTER = 1.15
NOISE_DB = -10.0
"""Power of the noise to that of the speech."""
SPEAKERS = {"clean": "1", "other": "2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of recordings, each with its .txt")
    parser.add_argument("--out", type=Path, default=Path("data/corpora"), help="folder that receives LibriSpeech/")
    parser.add_argument("--limit", type=int, help="at most so many recordings of each split, the first of them")
    parser.add_argument("--seed", type=int, default=0, help="of the splits and of the noise")
    arguments = parser.parse_args()
    try:
        made = make(arguments.root, arguments.out, arguments.seed, arguments.limit)
    except ZippkitError as error:
        parser.exit(2, f"{error}\n")
    print(arguments.out / "LibriSpeech", made)


def make(root: Path, out: Path, seed: int = 0, limit: int | None = None) -> dict[str, int]:
    """Write ``out/LibriSpeech``; returns each folder's number of recordings."""
    target = out / "LibriSpeech"
    if target.exists():
        raise DataError(f"{target} exists already; remove it or choose another --out")
    by_split: dict[str, list[Record]] = defaultdict(list)
    for record in read("pairs", root, seed=seed):
        if record.text:
            by_split[record.split].append(record)
    missing = {"train", "dev", "test"} - by_split.keys()
    if missing:
        raise DataError(f"{root}: no recordings with texts for {', '.join(sorted(missing))}; take a larger folder")
    folders = {f"{split}-clean": by_split[split] for split in ("train", "dev", "test")}
    folders["test-other"] = by_split["test"]
    for name, records in folders.items():
        write_folder(target / name, records[:limit], seed)
    return {name: len(records[:limit]) for name, records in folders.items()}


def write_folder(folder: Path, records: list[Record], seed: int) -> None:
    """Write one folder, of one speaker and one chapter."""
    speaker = SPEAKERS[folder.name.split("-")[1]]
    chapter = folder / speaker / "1"
    chapter.mkdir(parents=True)
    lines = []
    for number, record in enumerate(records):
        id_ = f"{speaker}-1-{folder.name.split('-')[0]}{number:04d}"
        source = Path(str(record.files[0])).resolve()
        target = chapter / f"{id_}.flac"
        if folder.name.endswith("-other"):
            wave, rate = read_audio(source)
            write_audio(target, harder(wave, rate, f"{seed} {record.id}"), rate)
        elif source.suffix.lower() == ".flac":
            target.symlink_to(source)
        else:
            write_audio(target, *read_audio(source))
        lines.append(f"{id_} {' '.join(str(record.text).split())}\n")
    (chapter / f"{speaker}-1.trans.txt").write_text("".join(lines), encoding="utf-8")


def harder(wave: Wave, rate: int, drawn_from: str) -> Wave:
    """The recording, faster and with noise that ``drawn_from`` alone decides."""
    fast = resample(wave, round(rate * FASTER), rate)
    rng = np.random.default_rng(list(hashlib.sha256(drawn_from.encode()).digest()))
    power = float(np.mean(fast**2)) * 10 ** (NOISE_DB / 10)
    noisy = fast + rng.normal(0, np.sqrt(power), len(fast)).astype(np.float32)
    # Louder than full scale would be clipped, which is another kind of harder.
    return np.asarray(noisy / max(1.0, float(np.abs(noisy).max())), np.float32)


if __name__ == "__main__":
    main()
