"""What a grid leaves for people: ``index.html``, and each experiment as Markdown, SVG and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template

from zippkit.experiment.claims import Judged, judge_claim
from zippkit.experiment.claims_page import Verdicts, claims_table, overview, table, tile, tiles
from zippkit.experiment.exports import as_json, as_markdown
from zippkit.experiment.results import Results
from zippkit.experiment.tables import Entry, Rows, progress_of, shown_progress, table_of
from zippkit.experiment.words import explanation
from zippkit.report.run_page import Markup, markup, tag
from zippkit.system.files import write_text


def write_page(results: Sequence[Results], out: Path, preset: str | None, name: str) -> Path:
    """Write everything that the records tell so far, each file whole or not at all.

    Args:
        results: of each experiment, in their order on the page.
        out: the folder to write to.
        preset: its name.
        name: the page's title where no experiment has a ``page_title``.

    Returns:
        The page: one file, which loads nothing.
    """
    from zippkit.experiment.pictures import picture

    sections: list[str] = []
    verdicts: list[tuple[Results, list[Judged]]] = []
    for each in results:
        experiment = each.grid.experiment
        judged = [judge_claim(each, claim) for claim in experiment.claims]
        rows = table_of(each)
        pictures = [picture(each, plot) for plot in experiment.plots]
        for i, svg in enumerate(pictures):
            write_text(out / f"{experiment.name}-{i + 1}.svg", svg)
        write_text(out / f"{experiment.name}.md", as_markdown(each, rows, judged))
        write_text(out / f"{experiment.name}.json", json.dumps(as_json(each, judged), indent=2))
        verdicts.append((each, judged))
        sections.append(tag("section", *_section(each, rows, pictures, judged), id=experiment.name))
    titles = (each.grid.experiment.page_title for each in results)
    title = next((given for given in titles if given), name)
    template = Template(files("zippkit.report").joinpath("templates/report.html").read_text(encoding="utf-8"))
    body = [*_head(verdicts, preset, title), *sections, *_foot(results)]
    write_text(out / "index.html", template.substitute(title=markup(f"{title} - zippkit"), body="\n".join(body)))
    return out / "index.html"


def _head(verdicts: Verdicts, preset: str | None, title: str) -> Iterator[Markup]:
    """Title, what to beware of, and every claim in one table."""
    yield tag("p", "zippkit experiment" + (f", preset {preset}" if preset else ""), class_="kicker")
    yield tag("h1", title)
    every = [results for results, _ in verdicts]
    for note in dict.fromkeys(results.grid.preset.note for results in every):
        if note:
            yield tag("p", tag("span", note, class_="bad"), class_="summary")
    done, runs = progress_of(every)
    yield tag("div", *tiles(verdicts), tile(f"{done} of {runs}", "runs done"), class_="tiles")
    yield overview(verdicts)
    yield tag("p", explanation(), class_="note")


def _section(results: Results, rows: Rows, pictures: list[str], judged: list[Judged]) -> Iterator[Markup]:
    experiment = results.grid.experiment
    yield tag("h2", experiment.title)
    yield tag("p", experiment.about)
    if progress := shown_progress([results]):
        yield tag("p", tag("span", progress, class_="bad"))
    yield table(rows.columns, [tag("tr", *map(_entry, row)) for row in rows.rows])
    n_seeds = len({job.seed for job in results.grid.jobs})
    yield tag("p", "1 seed." if n_seeds == 1 else f"{n_seeds} seeds, mean ± standard deviation.", class_="note")
    for plot, svg in zip(experiment.plots, pictures, strict=True):
        own = svg[svg.index("<svg") :]
        name = f"{experiment.name}-{experiment.plots.index(plot)}"
        for mark in (' id="', "url(#", 'href="#'):
            own = own.replace(mark, f"{mark}{name}-")
        figure = tag("div", Markup(own), class_="paper")
        yield tag("figure", tag("figcaption", tag("b", plot.title)), figure)
    if judged:
        yield tag("h3", "Claims")
        yield claims_table(results, judged)
    yield from _listed("not scored", {line: ", ".join(jobs) for line, jobs in results.skipped().items()})
    yield from _listed("runs failed", results.failures())


def _entry(entry: Entry) -> Markup:
    """A number, which stays on one line, and what stands below it."""
    text = tag("b", entry.text) if entry.best else markup(entry.text)
    below = [f"paper: {entry.paper}"] if entry.paper else []
    small = [tag("small", told) for told in (*below, entry.note) if told]
    return tag("td", tag("span", text, class_="number" if entry.number else ""), *small)


def _listed(what: str, items: Mapping[str, str]) -> Iterator[Markup]:
    if items:
        told = [tag("li", tag("b", name), tag("pre", text)) for name, text in items.items()]
        yield tag("details", tag("summary", f"{len(items)} {what}"), tag("ul", *told), open="open")


def _foot(results: Sequence[Results]) -> Iterator[Markup]:
    versions = sorted({version for each in results for record in each.records.values() for version in record.versions})
    if len(versions) > 1:
        told = f"The runs come from different versions of zippkit: {', '.join(versions)}."
        yield tag("p", tag("span", told, class_="bad"))
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    yield tag("p", f"Written by zippkit {version('zippkit')}, {written}.", class_="note")
