"""An experiment's table: our numbers, the paper's, and what each tower kept; as Markdown, and as rows for the page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from zippkit.experiment.parameters import parameters, shown_number
from zippkit.experiment.results import At, Results
from zippkit.experiment.scores import Kept

NOT_MEASURED = "-"


class Entry(NamedTuple):
    """A cell of a table."""

    text: str
    paper: str = ""
    best: bool = False
    note: str = ""
    """Below the text, in small."""
    number: bool = True
    """It stays on one line."""


class Rows(NamedTuple):
    """A table."""

    columns: list[str]
    rows: list[list[Entry]]


def table_of(results: Results) -> Rows:
    """A row for each cell and value of the axis."""
    experiment = results.grid.experiment
    axis, metrics = experiment.axis, experiment.metrics
    wanted = experiment.table.columns
    places = [(cell, at) for cell in experiment.cells for at in results.grid.values]
    towers = list(dict.fromkeys(name for place in places for name in results.retention(*place)))
    units = ["" if not metrics[name].percent else ", %" for name in wanted]
    columns = ["", *([axis.label] if axis else [])]
    columns += [metrics[name].label + unit for name, unit in zip(wanted, units, strict=True)]
    columns += [f"{tower} alone → inside" for tower in towers]
    columns.append("parameters")
    rows = []
    for cell, at in places:
        label = experiment.cells[cell].label
        best = experiment.table.best is not None and at == best_value(results, cell)
        row = [Entry(label, note=_missing_seeds(results, cell, at), number=False)]
        row += [Entry(shown_value(results, at), best=best)] if axis else []
        for name in wanted:
            text = shown(list(results.values(name, cell, at).values()), metrics[name].percent)
            row.append(Entry(text, experiment.cells[cell].paper.get(name, ""), best))
        kept = results.retention(cell, at)
        row += [shown_retention(kept.get(tower, {})) for tower in towers]
        rows.append([*row, _parameters(results, cell, at)])
    return Rows(columns, rows)


def _missing_seeds(results: Results, cell: str, at: At) -> str:
    """Such as ``2 of 3 seeds``; empty where every column has all of them."""
    jobs = [job for job in results.grid.jobs if (job.cell, job.value) == (cell, at)]
    columns = [set(results.values(name, cell, at)) for name in results.grid.experiment.table.columns]
    # A column that no run fills, such as that of a task that this cell is not trained on, says nothing of seeds.
    filled = [seeds for seeds in columns if seeds]
    n_seeds = min(map(len, filled), default=0)
    return "" if n_seeds == len(jobs) else f"{n_seeds} of {len(jobs)} seeds"


def _parameters(results: Results, cell: str, at: At) -> Entry:
    job = next(job for job in results.grid.jobs if (job.cell, job.value) == (cell, at))
    counted = parameters(job.recipe.spec)
    if counted is None:
        return Entry(NOT_MEASURED)
    return Entry(shown_number(counted.total), note=f"{shown_number(counted.trained)} trained")


def progress_of(results: Sequence[Results]) -> tuple[int, int]:
    """Return the numbers of finished runs and of all runs; those that experiments share count once."""
    runs = {job.key for each in results for job in each.grid.jobs}
    # A run is done for all experiments or for none: another may want it evaluated on more splits.
    left = {key for each in results for key in {job.key for job in each.grid.jobs} - each.done()}
    return len(runs - left), len(runs)


def shown_progress(results: Sequence[Results]) -> str:
    """Such as ``4 of 9 runs done.``; empty once all are."""
    done, runs = progress_of(results)
    return "" if done == runs else f"{done} of {runs} runs done."


def best_value(results: Results, cell: str) -> At:
    """The value of the axis with the lowest mean of the table's ``best``; None where a value is missing."""
    metric = results.grid.experiment.table.best
    means = {at: list(results.values(metric or "", cell, at).values()) for at in results.grid.values}
    if not all(means.values()):
        return None
    return min(means, key=lambda at: statistics.fmean(means[at]))


def shown_value(results: Results, at: At) -> str:
    """A value of the axis as text."""
    axis = results.grid.experiment.axis
    if at is None or axis is None:
        return ""
    return f"{100 * at:g} %" if axis.percent else f"{at:g}"


def shown(values: Sequence[float], percent: bool) -> str:
    """Mean and standard deviation over seeds; the second only where there are several."""
    if not values:
        return NOT_MEASURED
    if not percent and not any(values):
        return "0 exactly"
    factor, digits = (100, 1) if percent else (1, 4)
    sign = "" if percent else "+"
    text = f"{factor * statistics.fmean(values):{sign}.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {factor * statistics.stdev(values):.{digits}f}"


def shown_retention(kept: Mapping[int, Kept]) -> Entry:
    """A tower's loss before and after, and the change; means over seeds."""
    if not kept:
        return Entry(NOT_MEASURED)
    before = statistics.fmean(k.before for k in kept.values())
    after = statistics.fmean(k.after for k in kept.values())
    change = shown([k.change for k in kept.values()], percent=False)
    return Entry(f"{before:.3f} → {after:.3f}", note=change)


def markdown(table: Rows) -> str:
    """The table in Markdown; the paper's numbers in brackets."""

    def text(entry: Entry) -> str:
        words = f"**{entry.text}**" if entry.best else entry.text
        return words + (f" [{entry.paper}]" if entry.paper else "") + (f" ({entry.note})" if entry.note else "")

    lines = [table.columns, ["---"] * len(table.columns), *([text(entry) for entry in row] for row in table.rows)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
