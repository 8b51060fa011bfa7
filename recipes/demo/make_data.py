"""Make the embedded dataset: digit strings spoken by festival, as words and speech units.

Needs the Debian packages: ``apt-get install festival festvox-us-slt-hts``. Run from the repository:

    python recipes/demo/make_data.py --overwrite

takes about three minutes and writes ``data/`` (the dataset folder) and ``audio/`` (a few test strings to listen to).
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from zippkit.data.audio import read_audio, resample, write_audio
from zippkit.data.dataset import Dataset
from zippkit.data.dataset_writer import refuse_to_overwrite
from zippkit.data.prepare import prepare
from zippkit.data.readers import DIGITS
from zippkit.data.records import Record
from zippkit.data.units import UnitConfig
from zippkit.errors import DataError, ZippkitError

HERE = Path(__file__).parent
VOICE = "cmu_us_slt_arctic_hts"
COUNTS = {"train": 1000, "dev": 100, "test": 200}
UNITS = UnitConfig(sample_rate=16_000, window=6, stride=4, n_units=1024)
N_TO_LISTEN_TO = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder that receives data/ and audio/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there already")
    arguments = parser.parse_args()
    try:
        make(arguments.out, arguments.seed, arguments.overwrite)
    except ZippkitError as error:
        parser.exit(2, f"{error}\n")


def make(out: Path, seed: int, overwrite: bool) -> None:
    """Write ``out/data`` and ``out/audio``."""
    refuse_to_overwrite(out / "data", overwrite)
    strings = draw_strings(seed)

    def festival_digit_strings(root: Path) -> Iterator[Record]:
        for split, texts in strings.items():
            for index, text in enumerate(texts):
                yield spoken(f"{split}-{index:04d}", split, (wav(root, text),), text, "slt")

    with tempfile.TemporaryDirectory() as scratch:
        # The manifest names this folder; a name of its own makes two runs write the same bytes.
        spoken = Path(scratch, VOICE)
        spoken.mkdir()
        speak([text for texts in strings.values() for text in texts], spoken)
        dataset = prepare(
            festival_digit_strings,
            spoken,
            out / "data",
            units=UNITS,
            text="words",
            seed=seed,
            overwrite=overwrite,
            progress=show,
        )
        keep_some_audio(dataset, spoken, out / "audio")


def draw_strings(seed: int) -> dict[str, list[str]]:
    """Split to strings such as ``two seven one``, all different, of 2 to 6 digits."""
    rng = random.Random(seed)
    drawn: dict[str, None] = {}
    while len(drawn) < sum(COUNTS.values()):
        drawn[" ".join(rng.choice(DIGITS) for _ in range(rng.randint(2, 6)))] = None
    strings = list(drawn)
    # There are only 100 strings of two digits; drawn in order, all of them would be in train.
    rng.shuffle(strings)
    return {split: [strings.pop() for _ in range(count)] for split, count in COUNTS.items()}


def speak(texts: list[str], folder: Path) -> None:
    """Write each text as ``folder/two_seven_one.wav``: 16 kHz, 16 bits.

    Raises:
        DataError: festival or its voice is not installed, or it failed.
    """
    if shutil.which("festival") is None:
        raise DataError("festival is not installed; apt-get install festival festvox-us-slt-hts")
    script = folder / "speak.scm"
    lines = [f'(utt.save.wave (utt.synth (Utterance Text "{text}.")) "{wav(folder, text)}" \'riff)' for text in texts]
    script.write_text("\n".join([f"(voice_{VOICE})", *lines]))
    done = subprocess.run(["festival", "--batch", str(script)], capture_output=True, text=True, check=False)
    missing = [text for text in texts if not wav(folder, text).is_file()]
    if done.returncode or missing:
        raise DataError(
            f"festival spoke {len(texts) - len(missing)} of {len(texts)} strings; is the voice there "
            f"(apt-get install festvox-us-slt-hts)? It said: {done.stderr.strip() or 'nothing'}"
        )
    for text in texts:
        # Units are taken from these very samples, so that the kept audio files encode to the stored units.
        wave, rate = read_audio(wav(folder, text))
        write_audio(wav(folder, text), resample(wave, rate, UNITS.sample_rate), UNITS.sample_rate)


def wav(folder: Path, text: str) -> Path:
    return folder / f"{text.replace(' ', '_')}.wav"


def keep_some_audio(dataset: Dataset, spoken: Path, folder: Path) -> None:
    """Copy the first test strings of three digits and more, each of another length."""
    folder.mkdir(exist_ok=True)
    by_length: dict[int, str] = {}
    for example in dataset.split("test"):
        text = str(example.items["text"])
        by_length.setdefault(len(text.split()), text)
    for length in range(3, 3 + N_TO_LISTEN_TO):
        shutil.copyfile(wav(spoken, by_length[length]), wav(folder, by_length[length]))


def show(done: int, total: int, what: str) -> None:
    print(f"\r{what} {done}/{total}", end="\n" if done == total else "", flush=True)


if __name__ == "__main__":
    main()
