"""What a grid leaves for people: ``index.html``, and each experiment as Markdown, SVG and JSON."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from zippkit.experiment.results import Judged, Results, judge_claim
from zippkit.experiment.statistics import Verdict
from zippkit.experiment.tables import Rows, markdown, table_of
from zippkit.experiment.words import comparison, explanation, ours
from zippkit.report import Markup, markup, tag

LOOKS = {Verdict.HOLDS: "good", Verdict.FAILS: "bad", Verdict.UNKNOWN: "note"}


def write_page(results: Sequence[Results], out: Path, preset: str | None) -> Path:
    """Write everything that the records tell so far, each file whole or not at all.

    Returns:
        The page: one file, which loads nothing.
    """
    from zippkit.experiment.pictures import picture

    sections: list[str] = []
    verdicts: list[tuple[Results, list[Judged]]] = []
    for each in results:
        experiment = each.grid.experiment
        judged = [judge_claim(each, claim) for claim in experiment.claims]
        table = table_of(each)
        pictures = [picture(each, plot) for plot in experiment.plots]
        for i, svg in enumerate(pictures):
            _write(out / f"{experiment.name}-{i + 1}.svg", svg)
        _write(out / f"{experiment.name}.md", _markdown(each, table, judged))
        _write(out / f"{experiment.name}.json", json.dumps(_as_json(each, judged), indent=2))
        verdicts.append((each, judged))
        sections.append(tag("section", *_section(each, table, pictures, judged), id=experiment.name))
    template = Template(files("zippkit").joinpath("templates/report.html").read_text(encoding="utf-8"))
    body = [*_head(verdicts, preset), *sections, _foot()]
    _write(out / "index.html", template.substitute(title="zippkit: experiments", body="\n".join(body)))
    return out / "index.html"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _head(verdicts: Sequence[tuple[Results, list[Judged]]], preset: str | None) -> Iterator[Markup]:
    """Title, what to beware of, and every claim in one table."""
    yield tag("p", "zippkit experiment" + (f", preset {preset}" if preset else ""), class_="kicker")
    yield tag("h1", "The paper's claims, measured")
    for note in dict.fromkeys(results.grid.preset.note for results, _ in verdicts):
        if note:
            yield tag("p", tag("span", note, class_="bad"), class_="summary")
    counts = Counter(claim.verdict for _, judged in verdicts for claim in judged)
    tiles = (
        tag("div", tag("b", str(counts[v]), class_=LOOKS[v]), tag("span", v.value), class_="tile") for v in Verdict
    )
    yield tag("div", *tiles, class_="tiles")
    rows = [
        tag(
            "tr",
            tag("td", tag("a", results.grid.experiment.title, href=f"#{results.grid.experiment.name}")),
            tag("td", judged.claim.text, class_="words"),
            tag("td", tag("span", judged.verdict.value, class_=LOOKS[judged.verdict]), class_="name"),
        )
        for results, claims in verdicts
        for judged in claims
    ]
    yield _table(["experiment", "claim", "here"], rows)


def _section(results: Results, table: Rows, pictures: list[str], judged: list[Judged]) -> Iterator[Markup]:
    experiment = results.grid.experiment
    yield tag("h2", experiment.title)
    yield tag("p", experiment.about)
    n_seeds = len({job.seed for job in results.grid.jobs})
    yield _table(table.columns, [_row(row) for row in table.rows])
    yield tag("p", explanation(n_seeds), class_="note")
    for plot, svg in zip(experiment.plots, pictures, strict=True):
        own = svg[svg.index("<svg") :]
        name = f"{experiment.name}-{experiment.plots.index(plot)}"
        for mark in (' id="', "url(#", 'href="#'):
            own = own.replace(mark, f"{mark}{name}-")
        figure = tag("div", Markup(own), class_="paper")
        yield tag("figure", tag("figcaption", tag("b", plot.title)), figure)
    if judged:
        yield tag("h3", "Claims")
        rows = [_claim(results, each) for each in judged]
        yield _table(["the paper says", "the paper's numbers", "here", ""], rows)
    failures = results.failures()
    if failures:
        items = [tag("li", tag("b", job), tag("pre", error)) for job, error in failures.items()]
        yield tag("details", tag("summary", f"{len(failures)} runs failed"), tag("ul", *items), open="open")


def _row(row: Sequence[Any]) -> Markup:
    cells = []
    for entry in row:
        text = tag("b", entry.text) if entry.best else markup(entry.text)
        paper = tag("small", f"paper: {entry.paper}") if entry.paper else ""
        cells.append(tag("td", Markup(text + paper)))
    return tag("tr", *cells)


def _claim(results: Results, judged: Judged) -> Markup:
    compared = tag("small", f"compared: {comparison(results, judged.claim)}")
    verdict = tag("span", judged.verdict.value, class_=LOOKS[judged.verdict])
    return tag(
        "tr",
        tag("td", Markup(markup(judged.claim.text) + compared), class_="words"),
        tag("td", judged.claim.paper, class_="words"),
        tag("td", ours(results, judged), class_="words"),
        tag("td", Markup(verdict + (tag("small", judged.why) if judged.why else "")), class_="name"),
    )


def _table(columns: Sequence[str], rows: Sequence[Markup]) -> Markup:
    head = tag("thead", tag("tr", *(tag("th", column) for column in columns)))
    return tag("div", tag("table", head, tag("tbody", *rows)), class_="scroll")


def _foot() -> Markup:
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return tag("p", f"Written by zippkit {version('zippkit')}, {written}.", class_="note")


def _markdown(results: Results, table: Rows, judged: Sequence[Judged]) -> str:
    experiment = results.grid.experiment
    parts = [f"# {experiment.title}\n", experiment.about.strip() + "\n"]
    if results.grid.preset.note:
        parts.append(f"**{results.grid.preset.note}**\n")
    parts.append(markdown(table))
    parts += [f"![{plot.title}]({experiment.name}-{i}.svg)\n" for i, plot in enumerate(experiment.plots, 1)]
    for each in judged:
        why = f" ({each.why})" if each.why else ""
        lines = {"Paper": each.claim.paper, "Compared": comparison(results, each.claim), "Here": ours(results, each)}
        told = "".join(f"- {name}: {text}\n" for name, text in lines.items())
        parts.append(f"**{each.verdict.value}**{why}: {each.claim.text}\n\n{told}")
    return "\n".join(parts)


def _as_json(results: Results, judged: Sequence[Judged]) -> dict[str, Any]:
    experiment = results.grid.experiment
    rows = [
        {"cell": cell, "value": at, "metric": metric, "by_seed": results.values(metric, cell, at)}
        for cell in experiment.cells
        for at in results.grid.values
        for metric in experiment.metrics
    ]
    claims = [
        {
            "text": each.claim.text,
            "paper": each.claim.paper,
            "verdict": each.verdict.value,
            "why": each.why,
            "comparison": comparison(results, each.claim),
            "first": each.first,
            "second": each.second,
            "interval": each.interval._asdict() if each.interval else None,
            "p": each.p,
        }
        for each in judged
    ]
    return {"name": experiment.name, "note": results.grid.preset.note, "values": rows, "claims": claims}
