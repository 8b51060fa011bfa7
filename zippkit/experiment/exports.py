"""An experiment for other programs and other pages: its Markdown, and its numbers as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zippkit.experiment.claims import Judged
from zippkit.experiment.results import Results
from zippkit.experiment.tables import Rows, markdown, shown_progress
from zippkit.experiment.words import comparison, ours


def as_markdown(results: Results, table: Rows, judged: Sequence[Judged]) -> str:
    """Title, table, plots and claims."""
    experiment = results.grid.experiment
    parts = [f"# {experiment.title}\n", experiment.about.strip() + "\n"]
    parts += [f"**{told}**\n" for told in (results.grid.preset.note, shown_progress([results])) if told]
    parts.append(markdown(table))
    parts += [f"![{plot.title}]({experiment.name}-{i}.svg)\n" for i, plot in enumerate(experiment.plots, 1)]
    for each in judged:
        why = f" ({each.why})" if each.why else ""
        lines = {"Paper": each.claim.paper, "Compared": comparison(results, each.claim), "Here": ours(results, each)}
        told = "".join(f"- {name}: {text}\n" for name, text in lines.items())
        parts.append(f"**{each.verdict.value}**{why}: {each.claim.text}\n\n{told}")
    return "\n".join(parts)


def as_json(results: Results, judged: Sequence[Judged]) -> dict[str, Any]:
    """Every metric by cell, value of the axis and seed, and the claims."""
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
            "cell": each.cell,
            "first": each.first,
            "second": each.second,
            "interval": each.interval._asdict() if each.interval else None,
            "p": each.p,
        }
        for each in judged
    ]
    return {"name": experiment.name, "note": results.grid.preset.note, "values": rows, "claims": claims}
