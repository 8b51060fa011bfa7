"""`zippkit experiment`: load a folder's experiments, run their grids as one, and write the page."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from zippkit.errors import SpecError
from zippkit.experiment.grid import Grid, lay_out
from zippkit.experiment.loading import files_of, load_experiment, load_experiments
from zippkit.experiment.page import write_page
from zippkit.experiment.results import Results
from zippkit.experiment.runner import run_all
from zippkit.experiment.store import Store
from zippkit.system.extras import require
from zippkit.training.trainer import InterruptedRunError

PAGE_PERIOD = 300.0
"""Seconds after which the page is written again while runs are under way."""


def lay_out_all(folder: Path, only: Sequence[str] | None, preset: str) -> list[Grid]:
    """The grids of a folder's experiments.

    Raises:
        SpecError: every problem of every experiment and recipe.
    """
    grids, problems = [], []
    for file in load_experiments(folder, only):
        try:
            grids.append(lay_out(file, preset))
        except SpecError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise SpecError(problems)
    return grids


def lay_out_others(folder: Path, chosen: Sequence[Grid], preset: str) -> list[Grid]:
    """The grids that are not run this time, but may have results; one with mistakes is told and left out."""
    grids: list[Grid] = []
    names = {grid.experiment.name for grid in chosen}
    for path in files_of(folder).values():
        try:
            file = load_experiment(path)
            if file.experiment.name not in names:
                grids.append(lay_out(file, preset))
                names.add(file.experiment.name)
        except SpecError as error:
            print(f"not on the page: {error.problems[0]}", file=sys.stderr)
    return grids


def run_experiments(folder: Path, only: Sequence[str] | None, preset: str, out: Path) -> tuple[Path, int]:
    """Run what is left to run, and write the page: at the end, every few minutes, and when it is interrupted.

    Returns:
        The page, which has every experiment with results in ``out``, and how many runs failed.

    Raises:
        SpecError: mistakes in the YAML, before anything is run.
        InterruptedRunError: stopped by a signal; what is finished is on the page.
        MissingExtraError: what draws the page or tests its numbers is not installed; before anything is run.
    """
    require("matplotlib", "scipy")
    grids = lay_out_all(folder, only, preset)
    others = lay_out_others(folder, grids, preset) if only is not None else []
    store = Store(out)
    jobs = [job for grid in grids for job in grid.jobs]
    told = time.monotonic()

    def collect() -> Path:
        every = [*_results(grids, store), *(each for each in _results(others, store) if each.records)]
        every.sort(key=lambda results: (results.grid.experiment.place, results.grid.experiment.name))
        return write_page(every, store.path, preset, folder.resolve().name)

    def now_and_then() -> None:
        nonlocal told
        if time.monotonic() - told > PAGE_PERIOD:
            collect()
            told = time.monotonic()

    try:
        records = run_all(jobs, store, now_and_then)
    except (InterruptedRunError, KeyboardInterrupt):
        collect()
        raise
    page = collect()
    return page, sum(record.status == "failed" for record in records.values())


def _results(grids: Sequence[Grid], store: Store) -> Iterator[Results]:
    for grid in grids:
        known = {job.key: store.record(job.key) for job in grid.jobs}
        yield Results(grid, {key: record for key, record in known.items() if record is not None})
