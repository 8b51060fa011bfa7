"""An experiment's table: our numbers, the paper's, and what each tower kept; as Markdown, and as rows for the page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from zippkit.experiment.results import At, Results
from zippkit.experiment.scores import Kept

NOT_MEASURED = "-"


class Entry(NamedTuple):
    """One cell of a table."""

    text: str
    paper: str = ""
    best: bool = False


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
    rows = []
    for cell, at in places:
        label = experiment.cells[cell].label
        best = experiment.table.best is not None and at == best_value(results, cell)
        row = [Entry(label), *([Entry(shown_value(results, at), best=best)] if axis else [])]
        for name in wanted:
            text = shown(list(results.values(name, cell, at).values()), metrics[name].percent)
            row.append(Entry(text, experiment.cells[cell].paper.get(name, ""), best))
        kept = results.retention(cell, at)
        row += [Entry(shown_retention(kept.get(tower, {}))) for tower in towers]
        rows.append(row)
    return Rows(columns, rows)


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


def shown_retention(kept: Mapping[int, Kept]) -> str:
    """A tower's loss before and after, and the change; means over seeds."""
    if not kept:
        return NOT_MEASURED
    before = statistics.fmean(k.before for k in kept.values())
    after = statistics.fmean(k.after for k in kept.values())
    return f"{before:.3f} → {after:.3f} ({shown([k.change for k in kept.values()], percent=False)})"


def markdown(table: Rows) -> str:
    """The table in Markdown; the paper's numbers in brackets."""

    def text(entry: Entry) -> str:
        words = f"**{entry.text}**" if entry.best else entry.text
        return f"{words} [{entry.paper}]" if entry.paper else words

    lines = [table.columns, ["---"] * len(table.columns), *([text(entry) for entry in row] for row in table.rows)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
