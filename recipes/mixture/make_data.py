"""Make stand-ins for the paper's three corpora from the demo's embedded data, so that the mixture runs anywhere.

    python recipes/mixture/make_data.py --out data

writes ``data/librispeech`` (400 utterances with their words), ``data/libritts`` (504, other ones: 1 : 1.26) and
``data/librilight`` (96 of sound alone). All three have the demo's tokenizers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from zippkit.data.dataset import Dataset, Example
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.table import Split

DEMO = Path(__file__).parents[1] / "demo" / "data"
TRAIN = {"librispeech": range(400), "libritts": range(400, 904), "librilight": range(904, 1000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder that receives the three datasets")
    parser.add_argument("--overwrite", action="store_true", help="replace datasets that are there already")
    given = parser.parse_args()
    for dataset in make(given.out, overwrite=given.overwrite):
        print(dataset.path)


def make(out: Path, *, overwrite: bool = False) -> Iterator[Dataset]:
    """Write the three datasets.

    Raises:
        DataError: one of them is there already.
    """
    demo = Dataset.open(DEMO)
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in TRAIN.items():
        sound_alone = name == "librilight"
        splits = {"train": _some(demo.split("train"), rows, sound_alone)}
        if not sound_alone:
            splits |= {split: _some(demo.split(split), range(50), sound_alone) for split in ("dev", "test")}
        tokenizers = {modality: demo.tokenizer(modality) for modality in demo.modalities}
        kept = {key: each for key, each in tokenizers.items() if key == "speech" or not sound_alone}
        yield write_dataset(out / name, splits, kept, overwrite=overwrite)


def _some(split: Split, rows: Iterable[int], sound_alone: bool) -> list[Example]:
    found = (split[index] for index in rows)
    return [replace(each, items={"speech": each.items["speech"]}) if sound_alone else each for each in found]


if __name__ == "__main__":
    main()
