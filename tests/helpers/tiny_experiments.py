"""A tiny experiment of two cells and two seeds, and results that nobody had to train for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.tiny_runs import write_recipe
from zippkit.errors import SpecError
from zippkit.experiment.cli import lay_out_all
from zippkit.experiment.grid import lay_out
from zippkit.experiment.loading import load_experiment
from zippkit.experiment.results import Results
from zippkit.experiment.store import Record, Store

PHASE = {"steps": 2, "batch_size": 4, "learning_rate": 1e-2, "save_every": 1}
METRICS = {
    "wer": {"label": "WER", "task": "speech -> text"},
    "kept": {"label": "text kept", "retention": "text"},
}
CLAIM = {
    "text": "It learns.",
    "paper": "1 against 2",
    "metric": "wer",
    "group": ["long"],
    "is": "below",
    "than": ["short"],
}


def experiment(folder: Path, **more: Any) -> Path:
    """An experiment of two cells and two seeds, its recipe and data; returns its folder."""
    if not (folder / "base").exists():
        write_recipe(folder / "base", {**PHASE}, pretrain={"text": PHASE})
    data = {
        "name": "tiny",
        "title": "A tiny experiment",
        "recipe": "base/recipe.yaml",
        "cells": {"short": {"label": "Short"}, "long": {"label": "Long", "set": {"train.steps": 4}}},
        "seeds": [0, 1],
        "metrics": METRICS,
        "table": {"columns": ["wer", "kept"]},
        "plots": [{"title": "Errors", "x": "cells", "metrics": ["wer"]}],
        "claims": [CLAIM, {"text": "Kept.", "paper": "-", "metric": "kept", "group": ["long"], "is": "unchanged"}],
        **more,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    return folder


def evaluations(out: Path) -> dict[str, Any]:
    """What every run scored, by its hash."""
    store = Store(out)
    records = {file.stem: store.record(file.stem) for file in (out / "cells").glob("*.json")}
    return {key: record.evaluations for key, record in records.items() if record}


def problems(folder: Path, preset: str = "cpu") -> str:
    with pytest.raises(SpecError) as caught:
        lay_out_all(folder, None, preset)
    return str(caught.value)


def made_up(
    folder: Path, errors: dict[tuple[str, int], int], kept: dict[tuple[str, int], float] | None = None, **more: Any
) -> Results:
    """Results whose runs made so many errors in ten words, by cell and seed; one sentence of one word each.

    A run of which there are no errors has no record; ``kept`` is what its text tower changed by.
    """
    file = load_experiment(experiment(folder, **more) / "tiny.yaml")
    grid = lay_out(file, "cpu")
    records = {}
    for job in grid.jobs:
        if (job.cell, job.seed) not in errors:
            continue
        n_wrong, after = errors[job.cell, job.seed], 1.0 + (kept or {}).get((job.cell, job.seed), 0.0)
        answers = [{"id": str(i), "reference": "a", "hypothesis": "b" if i < n_wrong else "a"} for i in range(10)]
        evaluation = {
            "tasks": [{"task": "speech -> text", "answers": answers}],
            "retention": [{"tower": "text", "before": 1.0, "after": after}],
        }
        records[job.key] = Record(status="done", evaluations={"test": evaluation})
    return Results(grid, records)
