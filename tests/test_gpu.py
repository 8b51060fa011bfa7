"""`make gpu` at a toy size on a CPU: every part runs, and what fails is told; no GPU is no failure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.by_path import program

pytestmark = pytest.mark.slow

gpu: Any = program("benchmarks", "gpu")
TOY = gpu.Place(toy=True)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")  # of the compiler itself
@pytest.mark.parametrize(
    ("part", "figure", "n_rows"),
    [("train", "tokens_per_second", 3), ("attention", "table_over_flex", 1), ("decode", "tokens_per_second", None)],
)
def test_every_part_measures(part: str, figure: str, n_rows: int | None) -> None:
    rows = list(gpu.rows_of(part, TOY))
    assert n_rows is None or len(rows) == n_rows
    assert len(rows) > 0
    for row in rows:
        assert "problem" not in row, row
        assert row[figure] > 0
    assert json.loads(json.dumps(rows)) == rows
    told = gpu.table(part, rows).splitlines()
    assert len(told) == 4 + len(rows)
    assert len({line.count("|") for line in told[2:]}) == 1


def test_bytes_of_a_decoded_token_are_those_of_what_it_reads() -> None:
    decode: Any = program("benchmarks", "on_gpu.decode")
    zipped = program("benchmarks", "on_gpu.specs").zipper("toy", True, "cpu")
    one, two = (decode.bytes_per_step(zipped, batch, 10, 10) for batch in (1, 2))
    tower = sum(p.nbytes for p in zipped.model.tower("text").parameters())
    # The second row reads no weights again: 10 memories, and 5 slots of keys and values of 2 layers.
    assert two - one == 5 * 2 * 2 * 32 * 4 + 10 * (8 + 2 * 32 * 4) * 2
    assert tower < one < tower + sum(p.nbytes for p in zipped.model.get_submodule("links").parameters()) + two - one


def test_a_case_that_fails_is_told() -> None:
    def fails() -> dict[str, Any]:
        raise RuntimeError("out of memory\nand more")

    place: Any = program("benchmarks", "on_gpu.place")
    assert place.tried({"case": 1}, fails) == {"case": 1, "problem": "RuntimeError: out of memory"}


def test_a_part_that_ends_is_told_with_what_it_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program_file = tmp_path / "part.py"
    monkeypatch.setattr(gpu, "__file__", str(program_file))
    program_file.write_text("print('{\"case\": 1}', flush=True)\nraise SystemExit(3)")
    assert gpu.apart("train", toy=True) == {"rows": [{"case": 1}], "problem": "ended with exit code 3"}
    program_file.write_text("import time\nprint('{\"case\": 1}', flush=True)\ntime.sleep(60)")
    found = gpu.apart("train", toy=True, longest=2)
    assert found == {"rows": [{"case": 1}], "problem": "took more than 2 s and was ended"}


def test_tests_that_fail_are_told() -> None:
    said = "print('FAILED tests/a.py::one - no')\nprint('1 failed, 2 passed in 3s')\nraise SystemExit(1)"
    rows = list(gpu.tests([sys.executable, "-c", said]))
    assert [row.get("problem") for row in rows] == ["failed", "exit code 1"]
    assert rows[-1]["summary"] == "1 failed, 2 passed in 3s"


def test_without_a_gpu_there_is_nothing_to_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def started(*args: object, **kwargs: object) -> Iterator[None]:
        raise AssertionError("nothing is to be started")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "gpu.json")])
    gpu.main()
    assert "sees no GPU" in capsys.readouterr().out
    assert not (tmp_path / "gpu.json").exists()
