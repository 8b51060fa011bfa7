"""Have Kokoro's voices read sentences of books: a table of recordings, texts, voices and splits.

    python recipes/real_towers/fetch.py kokoro
    python recipes/real_towers/speak_books.py path/to/books --out corpora/voices
    zippkit prepare table corpora/voices -o data/voices

An hour of speech takes 50 minutes of one core. ``test`` and ``dev`` are voices that the others never have, and
sentences of books that the others never read. What was spoken stays, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from kokoro import SAMPLE_RATE, Kokoro

from zippkit.data.audio import resample, write_audio
from zippkit.errors import DataError, ZippkitError
from zippkit.system.files import appearing
from zippkit.system.progress import progress

VOICES = Path(__file__).parents[2] / "runs" / "real_towers" / "kokoro"
RATE = 16_000
UNHEARD = ("af_nova", "af_sky", "am_eric", "am_puck", "bf_lily", "bm_lewis")
"""Voices of the dev and test splits."""
SPLITS = {"dev": 0.04, "test": 0.1}
"""Part of all sentences; the rest is for training."""
N_WORDS = range(4, 15)
SENTENCE = re.compile(r"[^.!?]+[.!?]")
PLAIN = re.compile(r"[A-Z][A-Za-z',;: ]+[.!?]")
SPEEDS = (0.9, 1.15)


class Line(NamedTuple):
    """What is to be spoken."""

    id: str
    split: str
    text: str
    speaker: str
    speed: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("books", type=Path, help="folder of plain texts, a book each")
    parser.add_argument(
        "--held-out",
        nargs="*",
        default=(),
        metavar="WORD",
        help="words in names of books for dev and test; without, the last fifth",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--voices", type=Path, default=VOICES, help="Kokoro's folder (runs/real_towers/kokoro)")
    parser.add_argument("--sentences", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        speak(arguments.books, arguments.held_out, arguments.out, arguments.voices, arguments.sentences, arguments.seed)
    except ZippkitError as error:
        parser.exit(2, f"{error}\n")


def speak(books: Path, held_out: Sequence[str], out: Path, voices: Path, n_sentences: int, seed: int) -> None:
    """Write ``out/recordings.csv`` and the recordings beside it."""
    kokoro = Kokoro(voices)
    lines = list(planned(books, held_out, kokoro, n_sentences, seed))
    out.mkdir(parents=True, exist_ok=True)
    with progress("speaking", len(lines)) as advance:
        for number, line in enumerate(lines, 1):
            file = out / f"{line.id}.flac"
            if not file.exists():
                wave = resample(kokoro.say(line.text, line.speaker, line.speed), SAMPLE_RATE, RATE)
                with appearing(file) as new:
                    write_audio(new, wave, RATE)
            advance(number, line.speaker)
    with appearing(out / "recordings.csv") as new, new.open("w", encoding="utf-8", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(("id", "speech", "text", "split", "speaker"))
        table.writerows((line.id, f"{line.id}.flac", line.text, line.split, line.speaker) for line in lines)


def planned(books: Path, held_out: Sequence[str], kokoro: Kokoro, n_sentences: int, seed: int) -> Iterator[Line]:
    """The lines, the same for the same books and seed.

    Raises:
        DataError: no books, or too few sentences in them.
    """
    files = sorted(books.glob("*.txt"))
    files = [file for file in files if file.name != "README.txt"]
    if len(files) < 2:
        raise DataError(f"{books}: {len(files)} files end in .txt; expected at least two books")
    unknown = [word for word in held_out if not any(word in file.stem for file in files)]
    if unknown:
        raise DataError(f"--held-out: no book of {books} has {', '.join(unknown)} in its name")
    apart = [file for file in files if any(word in file.stem for word in held_out)] or files[-max(1, len(files) // 5) :]
    rng = np.random.default_rng(seed)
    heard = [voice for voice in kokoro.voices if voice not in UNHEARD]
    counts = {split: round(part * n_sentences) for split, part in SPLITS.items()}
    for split, n in {"train": n_sentences - sum(counts.values()), **counts}.items():
        train = split == "train"
        from_ = [file for file in files if (file not in apart) == train]
        texts = drawn(from_, n, kokoro, np.random.default_rng([seed, len(split)]))
        for i, text in enumerate(texts):
            voice = (heard if train else UNHEARD)[i % len(heard if train else UNHEARD)]
            yield Line(f"{split}-{i:05d}", split, text, voice, round(float(rng.uniform(*SPEEDS)), 2))


def drawn(files: Sequence[Path], n: int, kokoro: Kokoro, rng: np.random.Generator) -> list[str]:
    """Different sentences of which every word can be said.

    Raises:
        DataError: there are too few.
    """
    found = sorted({sentence for file in files for sentence in sentences(file)})
    chosen: list[str] = []
    for i in rng.permutation(len(found)):
        if len(chosen) == n:
            break
        try:
            kokoro.words.phonemes(found[i])
        except DataError:
            continue
        chosen.append(found[i])
    if len(chosen) < n:
        raise DataError(f"{files[0].parent}: {len(chosen)} sentences that can be said; {n} were asked for")
    return chosen


def sentences(file: Path) -> Iterator[str]:
    """Sentences of letters and plain punctuation, of a length that is spoken in a few seconds."""
    text = file.read_text(encoding="utf-8").replace("’", "'")
    for paragraph in text.split("\n\n"):
        for match in SENTENCE.finditer(" ".join(paragraph.split())):
            sentence = match.group().strip()
            if PLAIN.fullmatch(sentence) and len(sentence.split()) in N_WORDS:
                yield sentence


if __name__ == "__main__":
    sys.exit(main())
