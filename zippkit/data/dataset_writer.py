"""Write a dataset folder: an Arrow file and checksums per split, tokenizers, a manifest and a card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zippkit.data.dataset import Dataset, Tokenizer
from zippkit.data.forms import Form
from zippkit.data.manifest import DATASET_MANIFEST, DatasetManifest, FileEntry, Skipped, sha256_of
from zippkit.data.rows import Columns, write_rows
from zippkit.data.saved_columns import save_column, tokenizer_form
from zippkit.data.table import Example
from zippkit.errors import DataError, did_you_mean
from zippkit.system.files import appearing, write_text

_SPLIT = re.compile(r"[^\W\d][\w-]*")


def write_dataset(
    path: str | Path,
    splits: Mapping[str, Iterable[Example]],
    tokenizers: Mapping[str, Tokenizer],
    *,
    waveforms: Mapping[str, int] | None = None,
    arrays: Mapping[str, Sequence[int] | None] | None = None,
    source: Mapping[str, Any] | None = None,
    skipped: Sequence[tuple[str, str]] = (),
    partial: bool = False,
    overwrite: bool = False,
) -> Dataset:
    """Write a dataset folder; it appears under ``path`` complete or not at all.

    Args:
        path: the folder to write.
        splits: name to examples, each read once and not kept; all are documents, or none is.
        tokenizers: modality to tokenizer; a modality of text without one is bytes, one of ids without one is plain ids,
            one of floats without one is features.
        waveforms: modalities of waveforms, and their samples a second.
        arrays: modalities of features, and the shape of one frame; or of plain ids, and None. Only those need be named
            that the first example may lack.
        source: where the examples came from, JSON values.
        skipped: (id, reason) of recordings that could not be used.
        partial: an example may lack a modality that is named in one of these; a task passes over examples without one
            of its. Documents may always.
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
        forms = _forms(tokenizers, waveforms or {}, arrays or {})
        files, written = _write_splits(folder, splits, forms, partial)
        _refuse_unused(forms, _found(written), tokenizers)
        columns = {
            name: save_column(folder, name, form, tokenizers.get(name), (waveforms or {}).get(name), written)
            for name, form in _found(written).items()
        }
        # The card is for people to edit, so it is not among the files that are hashed.
        write_text(folder / "README.md", _card(splits))
        files |= {file: _entry(folder / file) for column in columns.values() for file in column.all_files}
        manifest = DatasetManifest(
            documents=written[0].documents,
            splits={name: f"{name}.arrow" for name in splits},
            modalities=columns,
            files=files,
            source=dict(source or {}),
            skipped=[Skipped(id=id_, reason=reason) for id_, reason in skipped],
        )
        write_text(folder / DATASET_MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return Dataset(target, manifest)


def _write_splits(
    folder: Path, splits: Mapping[str, Iterable[Example]], forms: Mapping[str, Form], partial: bool
) -> tuple[dict[str, FileEntry], list[Columns]]:
    """Write the splits; return their files, and what each holds."""
    files: dict[str, FileEntry] = {}
    written: list[Columns] = []
    for name, examples in splits.items():
        table, checksums = f"{name}.arrow", f"{name}.crc32"
        written.append(write_rows(folder / table, folder / checksums, examples, forms, partial))
        _check_alike(written[0], written[-1], name)
        files[table] = _entry(folder / table, written[-1].n_examples, checksums)
        files[checksums] = _entry(folder / checksums)
    return files, written


def _found(written: Sequence[Columns]) -> dict[str, Form]:
    """Return the forms of the modalities that some example has."""
    return {name: form for columns in written for name, form in columns.forms.items() if columns.n_rows[name]}


def _refuse_unused(forms: Mapping[str, Form], found: Mapping[str, Any], tokenizers: Mapping[str, Tokenizer]) -> None:
    unused = [name for name in forms if name not in found]
    if unused:
        what = {"waveform": "sample rate", "features": "shape"}.get(forms[unused[0]].kind, "kind")
        what = "tokenizer" if unused[0] in tokenizers else what
        raise DataError(f"{what} for {unused[0]!r}, which no example has{did_you_mean(unused[0], found)}")


def _forms(
    tokenizers: Mapping[str, Tokenizer], waveforms: Mapping[str, int], arrays: Mapping[str, Sequence[int] | None]
) -> dict[str, Form]:
    """Return how the modalities are stored that are known beforehand."""
    both = [name for name in tokenizers if name in waveforms]
    if both:
        raise DataError(f"{min(both)} has a tokenizer and a sample rate; expected one of them")
    forms = {name: tokenizer_form(tokenizer) for name, tokenizer in tokenizers.items()}
    forms |= dict.fromkeys(waveforms, Form("waveform"))
    plain = {
        name: Form("ids") if shape is None else Form("features", shape=tuple(shape)) for name, shape in arrays.items()
    }
    return forms | {name: form for name, form in plain.items() if name not in forms}


def _check_alike(first: Columns, other: Columns, split: str) -> None:
    kinds, expected = ({n: (f.kind, f.shape) for n, f in columns.forms.items()} for columns in (other, first))
    if (kinds, other.documents) != (expected, first.documents):
        seen, wanted = sorted(kinds), sorted(expected)
        shapes = [
            f"{n} in frames of {kinds[n][1]}, not {expected[n][1]}"
            for n in kinds
            if n in expected and kinds[n][1] != expected[n][1]
        ]
        what = "; ".join(shapes) or "text as text"
        if other.documents != first.documents:
            what = "documents everywhere or nowhere"
        raise DataError(f"split {split!r} has {seen}, expected {wanted} as in the others, {what}")


def _entry(path: Path, rows: int | None = None, checksums: str | None = None) -> FileEntry:
    return FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size, rows=rows, checksums=checksums)


def _card(splits: Iterable[str]) -> str:
    """Return a card whose front matter names the splits for ``datasets.load_dataset``.

    From the file names alone it would rename ``dev``; a split's name must not have dashes there.
    """
    files = "".join(f"  - split: {name.replace('-', '_')}\n    path: {name}.arrow\n" for name in splits)
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
