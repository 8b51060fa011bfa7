"""What a run keeps of its datasets: their tokenizers and manifests, so that it stands alone and knows them again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from zippkit.data.dataset import Dataset
from zippkit.data.manifest import DATASET_MANIFEST, Column, DatasetManifest, read_dataset_manifest
from zippkit.errors import DataError
from zippkit.system.files import appearing, inside, write_text

SEVERAL = "datasets"
"""Beside the tokenizers of several datasets: the manifest of each, under its name."""


def keep_tokenizers(folder: Path, datasets: Mapping[str, Dataset], run: Path) -> None:
    """Copy the datasets' tokenizers and manifests into ``folder``, or find that they are the same that it has.

    Raises:
        DataError: the run was started with other datasets; names every change.
    """
    if folder.exists():
        _check_kept(folder, datasets, run)
        return
    columns = _columns(datasets)
    with appearing(folder) as new:
        new.mkdir()
        for dataset, column in columns.values():
            for file in column.all_files:
                copy = inside(new, file)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(inside(dataset.path, file), copy)
        manifests = {name: (dataset.path / DATASET_MANIFEST).read_text() for name, dataset in datasets.items()}
        if len(datasets) == 1:
            write_text(new / DATASET_MANIFEST, *manifests.values())
            return
        (new / SEVERAL).mkdir()
        for name, text in manifests.items():
            write_text(new / SEVERAL / f"{name}.json", text)
        files = {file: dataset.manifest.files[file] for dataset, c in columns.values() for file in c.all_files}
        whole = DatasetManifest(splits={}, modalities={n: column for n, (_, column) in columns.items()}, files=files)
        write_text(new / DATASET_MANIFEST, whole.model_dump_json(indent=2) + "\n")


def _columns(datasets: Mapping[str, Dataset]) -> dict[str, tuple[Dataset, Column]]:
    """Each modality as the first dataset has it, or the one with more ids, or with a way back to sound."""
    found: dict[str, tuple[Dataset, Column]] = {}
    for dataset in datasets.values():
        for name, column in dataset.manifest.modalities.items():
            if name not in found or _tells_more(column, found[name][1]):
                found[name] = dataset, column
    return found


def _tells_more(column: Column, known: Column) -> bool:
    if column.kind == known.kind == "ids":
        return (column.vocab_size or 0) > (known.vocab_size or 0)
    return column.fingerprint == known.fingerprint and bool(column.vocoder) and not known.vocoder


def _check_kept(folder: Path, datasets: Mapping[str, Dataset], run: Path) -> None:
    several = folder / SEVERAL
    wrong = []
    for name, dataset in datasets.items():
        kept = _kept(several / f"{name}.json") if several.is_dir() else read_dataset_manifest(folder)
        changed = [file for file, entry in kept.files.items() if dataset.manifest.files.get(file) != entry]
        if changed or kept.modalities != dataset.manifest.modalities:
            what = ", ".join(changed) or "a modality"
            wrong.append(f"{dataset.path}: {what} changed since {run} was started; choose another --out")
    if wrong:
        raise DataError("\n".join(wrong))


def _kept(file: Path) -> DatasetManifest:
    try:
        return DatasetManifest.model_validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a dataset's manifest, as the run keeps it ({error})") from None
