"""Tables for the terminal: they say what the run's files say, whatever is written in those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from zippkit.evaluation.evaluation_file import Answer, TaskScore
from zippkit.report.terminal_tables import answers_table, show, summary_tables
from zippkit.training.run_folder import RunFolder

SCORES: dict[str, Any] = {
    "split": "dev",
    "tasks": [{"task": "speech -> text", "wer_before": 1.5, "wer": 0.0449, "answers": []}],
    "retention": [
        {"tower": "text", "frozen": True, "before": 2.25, "after": 2.25},
        {"tower": "speech", "frozen": False, "before": 2.0, "after": 1.5},
        {"tower": "nearly", "frozen": True, "before": 1.0, "after": 1.0000001},
    ],
}
PROOFS = {
    "passed": False,
    "certificates": [
        {"name": "C1", "claim": "no future", "passed": True, "detail": "", "seconds": 0.1},
        {"name": "C3", "claim": "[/b] frozen :sparkles:", "passed": False, "detail": "", "seconds": 0.1},
    ],
}
HARD = TaskScore("speech -> text", 1.0, 0.5, (Answer("[a]", "[/b]", "[red]x :smile:"), Answer("2", "r", "h")))


def rows(table: Table) -> list[tuple[str, ...]]:
    return list(zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = RunFolder(tmp_path)
    folder.write_json("evaluation.json", SCORES)
    folder.write_json("certificates.json", PROOFS)
    folder.add_seconds("train", 12.34)
    folder.add_seconds("evaluate", 5)
    return tmp_path


def test_tables_say_what_the_files_say(run: Path) -> None:
    scores, retention, proofs, seconds = summary_tables(run)
    assert scores.title == "Word error rate (dev)"
    assert rows(scores) == [("speech -> text", "150.0%", "4.5%")]
    assert rows(retention) == [
        ("text", "yes", "2.2500", "2.2500", "0 exactly"),
        ("speech", "no", "2.0000", "1.5000", "-0.5000"),
        # However little it is, a change is not called none.
        ("nearly", "yes", "1.0000", "1.0000", "+0.0000"),
    ]
    assert rows(proofs) == [("C1", "no future", "holds"), ("C3", "[/b] frozen :sparkles:", "FAILS")]
    assert rows(seconds) == [("train", "12.3"), ("evaluate", "5.0")]


def test_what_a_run_does_not_have_yet_has_no_table(run: Path, tmp_path: Path) -> None:
    (run / "evaluation.json").unlink()
    assert [table.title for table in summary_tables(run)] == ["Certificates", "Time"]
    assert summary_tables(tmp_path / "nowhere") == []


def test_the_first_answers_are_shown() -> None:
    assert rows(answers_table(HARD, 1)) == [("[a]", "[/b]", "[red]x :smile:")]
    assert len(rows(answers_table(HARD, 5))) == 2


def test_brackets_and_colons_are_printed_as_they_are(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(answers_table(HARD, 2), *summary_tables(run))
    printed = capsys.readouterr().out
    for text in ("[a]", "[/b]", "[red]x :smile:", "[/b] frozen :sparkles:", "0 exactly", "12.3"):
        assert text in printed


def test_seconds_of_a_phase_that_ran_again_are_those_of_the_last_time(run: Path) -> None:
    RunFolder(run).add_seconds("train", 1.0)
    assert json.loads((run / "seconds.json").read_text()) == {"train": 1.0, "evaluate": 5}
