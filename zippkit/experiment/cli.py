"""`zippkit experiment`: load a folder's experiments, run their grids as one, and write the page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from zippkit.errors import SpecError
from zippkit.experiment.format import load_experiments
from zippkit.experiment.grid import Grid, lay_out
from zippkit.experiment.page import write_page
from zippkit.experiment.results import Results
from zippkit.experiment.runner import run_all
from zippkit.experiment.store import Record, Store
from zippkit.trainer import InterruptedRunError

PAGE_PERIOD = 300.0
"""Seconds after which the page is written again while runs are under way."""


def lay_out_all(folder: Path, only: Sequence[str] | None, preset: str) -> list[Grid]:
    """The grids of a folder's experiments.

    Raises:
        SpecError: every problem of every experiment and recipe.
    """
    grids, problems = [], []
    for file in load_experiments(folder, list(only) if only is not None else None):
        try:
            grids.append(lay_out(file, preset))
        except SpecError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise SpecError(problems)
    return grids


def run_experiments(folder: Path, only: Sequence[str] | None, preset: str, out: Path) -> tuple[Path, int]:
    """Run what is left to run, and write the page: at the end, every few minutes, and when it is interrupted.

    Returns:
        The page, and how many runs failed.

    Raises:
        SpecError: mistakes in the YAML, before anything is run.
        InterruptedRunError: stopped by a signal; what is finished is on the page.
    """
    grids = lay_out_all(folder, only, preset)
    store = Store(out)
    jobs = [job for grid in grids for job in grid.jobs]
    told = time.monotonic()

    def now_and_then() -> None:
        nonlocal told
        if time.monotonic() - told > PAGE_PERIOD:
            _collect(grids, store, preset)
            told = time.monotonic()

    try:
        records = run_all(jobs, store, now_and_then)
    except (InterruptedRunError, KeyboardInterrupt):
        _collect(grids, store, preset)
        raise
    page = _collect(grids, store, preset)
    return page, sum(record.status == "failed" for record in records.values())


def _collect(grids: Sequence[Grid], store: Store, preset: str) -> Path:
    known: dict[str, Record | None] = {job.key: store.record(job.key) for grid in grids for job in grid.jobs}
    records = {key: record for key, record in known.items() if record is not None}
    return write_page([Results(grid, records) for grid in grids], store.path, preset)
