"""The table of peers: medians and ratios of rounds in turns, and its place in the page of results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.by_path import program

compare: Any = program("benchmarks/peers", "compare")
FIGURES = {"memory": 100.0, "parameters": 1e6, "flops": 2e11, "decode_bytes": 4e7, "gemm": 1.0, "gemv": 1.0}


class Known:
    """A peer whose works take known seconds, every other round twice as long."""

    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        self.name, self.seconds, self.log, self.n = name, seconds, log, 0

    def ask(self, what: str) -> float:
        if what == "train":
            self.n += 1
        if what in compare.LABELS:
            self.log.append(f"{self.name} {what}")
        return FIGURES.get(what, self.seconds * (0.5 if what == "train_bf16" else 1.0) * (1 + self.n % 2))


def measured() -> tuple[dict[str, Any], list[str]]:
    log: list[str] = []
    return compare.measure([Known("zippkit", 2.0, log), Known("torchtune", 1.0, log)], 5), log


def test_ratios_are_of_rounds_and_turns_change() -> None:
    found, log = measured()
    ours, theirs = found["peers"]["zippkit"], found["peers"]["torchtune"]
    assert ours["speed_against_zippkit"] == dict.fromkeys(compare.LABELS, 1.0)
    assert theirs["speed_against_zippkit"] == dict.fromkeys(compare.LABELS, 2.0)
    assert ours["bf16_time"] == theirs["bf16_time"] == 0.5
    assert theirs["share_of_gemm"] / ours["share_of_gemm"] == pytest.approx(2)
    assert theirs["share_of_gemv"] / ours["share_of_gemv"] == pytest.approx(2)
    rounds = [line for line in log if line.endswith(" train")][-10:]
    firsts = [line.split()[0] for line in rounds[::2]]
    assert firsts == ["zippkit", "torchtune", "zippkit", "torchtune", "zippkit"]


def test_the_table_stands_between_its_marks(tmp_path: Path) -> None:
    found, _ = measured()
    page = tmp_path / "results.md"
    page.write_text(f"before\n{compare.BEGIN}\nold\n{compare.END}\nafter\n")
    compare.write_results(page, compare.table(found))
    told = page.read_text()
    assert told.startswith(f"before\n{compare.BEGIN}\n| | zippkit | torchtune |")
    assert told.endswith(f"|\n{compare.END}\nafter\n")
    assert "old" not in told
    rows = told.splitlines()[2:-2]
    assert {row.count("|") for row in rows} == {4}
    for label in (*compare.LABELS.values(), "GEMM", "GEMV", "memory"):
        assert any(label in row for row in rows)
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="expected the lines"):
        compare.write_results(page, "table")


def test_a_median_of_few_rounds_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["compare.py", "--rounds", "4"])
    with pytest.raises(SystemExit):
        compare.main()
    assert "--rounds 4" in capsys.readouterr().err


def test_every_peer_is_pinned() -> None:
    for peer in compare.PEERS.values():
        pins = compare.HERE / "pins" / f"{peer.pins}.txt"
        lines = [line for line in pins.read_text().splitlines() if line and not line.startswith("#")]
        assert lines
        assert all("==" in line for line in lines)
        assert (compare.HERE / peer.script).exists()
