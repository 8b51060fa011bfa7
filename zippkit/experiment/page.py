"""Results of a grid for readers: ``index.html``, and each experiment as Markdown, SVG and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from zippkit.experiment.claims import Judged, judge_claim
from zippkit.experiment.claims_page import ClaimRow, Tile, claim_rows, tiles
from zippkit.experiment.exports import as_json, as_markdown
from zippkit.experiment.format import Experiment
from zippkit.experiment.results import Results
from zippkit.experiment.tables import Rows, progress_of, shown_progress, table_of
from zippkit.experiment.words import explanation
from zippkit.report.html import render
from zippkit.system.extras import require
from zippkit.system.files import write_text


class Drawn(NamedTuple):
    """A plot on the page."""

    title: str
    picture: Markup


@dataclass(frozen=True)
class Section:
    """Contents of one experiment's section."""

    experiment: Experiment
    progress: str
    """Empty where every run is done."""
    table: Rows
    n_seeds: int
    plots: list[Drawn]
    claims: list[ClaimRow]
    skipped: dict[str, str]
    """Tasks that were not scored, and the runs of which."""
    failures: dict[str, str]
    """Runs that failed, and why."""


def write_page(results: Sequence[Results], out: Path, preset: str | None, name: str) -> Path:
    """Write everything that the records tell so far, each file whole or not at all.

    Args:
        results: of each experiment, in their order on the page.
        out: the folder to write to.
        preset: its name.
        name: the page's title where no experiment has a ``page_title``.

    Returns:
        The page: one file, which loads nothing.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib")
    verdicts = [(each, [judge_claim(each, claim) for claim in each.grid.experiment.claims]) for each in results]
    sections = [_written(each, judged, out) for each, judged in verdicts]
    done, runs = progress_of(list(results))
    page = render(
        "experiment.html",
        title=next((each.experiment.page_title for each in sections if each.experiment.page_title), name),
        preset=preset,
        notes=[note for note in dict.fromkeys(each.grid.preset.note for each in results) if note],
        tiles=[*tiles(verdicts), Tile(f"{done} of {runs}", "runs done")],
        explanation=explanation(),
        sections=sections,
        versions=sorted({each for one in results for record in one.records.values() for each in record.versions}),
        version=version("zippkit"),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_text(out / "index.html", page)
    return out / "index.html"


def _written(results: Results, judged: Sequence[Judged], out: Path) -> Section:
    """Write one experiment's own files and return its section."""
    from zippkit.experiment.pictures import picture

    experiment, rows = results.grid.experiment, table_of(results)
    pictures = [picture(results, plot) for plot in experiment.plots]
    for i, svg in enumerate(pictures):
        write_text(out / f"{experiment.name}-{i + 1}.svg", svg)
    write_text(out / f"{experiment.name}.md", as_markdown(results, rows, list(judged)))
    write_text(out / f"{experiment.name}.json", json.dumps(as_json(results, list(judged)), indent=2))
    return Section(
        experiment=experiment,
        progress=shown_progress([results]) or "",
        table=rows,
        n_seeds=len({job.seed for job in results.grid.jobs}),
        plots=[
            Drawn(plot.title, _inside_page(svg, f"{experiment.name}-{i}"))
            for i, (plot, svg) in enumerate(zip(experiment.plots, pictures, strict=True))
        ],
        claims=claim_rows(results, judged),
        skipped={line: ", ".join(jobs) for line, jobs in results.skipped().items()},
        failures=dict(results.failures()),
    )


def _inside_page(svg: str, name: str) -> Markup:
    """Make an SVG file an element of the page, its ids its own."""
    own = svg[svg.index("<svg") :]
    for mark in (' id="', "url(#", 'href="#'):
        own = own.replace(mark, f"{mark}{name}-")
    return Markup(own)
