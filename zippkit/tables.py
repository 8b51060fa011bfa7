"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zippkit.evaluate import TaskScore
from zippkit.run_folder import RunFolder


def show(*tables: Table) -> None:
    """Print tables one below the other."""
    console = Console()
    for table in tables:
        console.print(table)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        words = i == 0 or column == "claim"
        table.add_column(column, justify="left" if words else "right")
    for row in rows:
        # Text, so that square brackets are not read as styles.
        table.add_row(*map(Text, row))
    return table


def answers_table(task: TaskScore, n_examples: int) -> Table:
    """References beside hypotheses."""
    table = Table("example", "reference", "hypothesis", title=task.task, title_justify="left")
    for answer in task.answers[:n_examples]:
        table.add_row(Text(answer.id), Text(answer.reference), Text(answer.hypothesis))
    return table


def summary_tables(run: Path) -> list[Table]:
    """What is known about a run so far: scores, retention, certificates, seconds."""
    folder = RunFolder(run)
    tables = []
    scores: dict[str, Any] | None = folder.read_json("evaluation.json")
    if scores:
        rows = [(t["task"], f"{t['wer_before']:.1%}", f"{t['wer']:.1%}") for t in scores["tasks"]]
        tables.append(_table(f"Word error rate ({scores['split']})", ("task", "before", "after"), rows))
        retention = [
            (r["tower"], "yes" if r["frozen"] else "no", f"{r['before']:.4f}", f"{r['after']:.4f}", _change(r))
            for r in scores["retention"]
        ]
        columns = ("tower", "frozen", "alone", "zipped", "change")
        tables.append(_table("Unimodal loss, nats per token", columns, retention))
    certificates: dict[str, Any] | None = folder.read_json("certificates.json")
    if certificates:
        proofs = [(c["name"], c["claim"], "holds" if c["passed"] else "FAILS") for c in certificates["certificates"]]
        tables.append(_table("Certificates", ("", "claim", ""), proofs))
    seconds = folder.read_json("seconds.json")
    if seconds:
        tables.append(_table("Time", ("phase", "seconds"), [(k, f"{v:.1f}") for k, v in seconds.items()]))
    return tables


def _change(row: dict[str, Any]) -> str:
    change = row["after"] - row["before"]
    return "0 exactly" if change == 0 else f"{change:+.4f}"
