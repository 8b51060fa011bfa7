"""The page: what to beware of, what is missing, and how it looks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from helpers.tiny_experiments import METRICS, experiment, made_up
from helpers.tiny_runs import zippkit
from zippkit.experiment.page import write_page
from zippkit.experiment.parameters import parameters, shown_number
from zippkit.experiment.pictures import picture
from zippkit.experiment.results import Results
from zippkit.report.sizes import sizes


def test_the_page_says_what_to_beware_of_and_loads_nothing(tmp_path: Path) -> None:
    note = "The numbers mean <nothing>."
    folder = experiment(tmp_path, seeds=[0], presets={"smoke": {"note": note}})
    done = zippkit("experiment", folder, "--smoke", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "index.html").read_text()
    assert "The numbers mean &lt;nothing&gt;." in page
    assert "one seed only" in page and "1 against 2" in page
    assert "0 exactly" in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "<svg" in page
    assert (tmp_path / "out" / "tiny.md").read_text().count("cannot be told") == 2
    assert (tmp_path / "out" / "tiny-1.svg").read_text().startswith("<?xml")


def written(results: Results, folder: Path) -> str:
    """The page's HTML; the figures' own ids and numbers are left out."""
    page = write_page([results], folder, "cpu", "some folder").read_text()
    return re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_the_page_tells_what_is_missing(tmp_path: Path) -> None:
    errors = {("short", 0): 5, ("short", 1): 7, ("long", 0): 2}
    results = made_up(tmp_path, errors)
    page = written(results, tmp_path)
    assert "<b>3 of 4</b><span>runs done</span>" in page
    assert "3 of 4 runs done." in page and "3 of 4 runs done." in (tmp_path / "tiny.md").read_text()
    assert page.count("1 of 2 seeds") == 1
    assert "<small>one seed only</small>" in page
    empty = written(made_up(tmp_path, {}), tmp_path)
    assert '<b class="note">2</b><span>not measured</span>' in empty
    assert '<b class="note">0</b><span>cannot be told</span>' in empty
    assert empty.count("0 of 2 seeds") == 2
    whole = written(made_up(tmp_path, {**errors, ("long", 1): 1}), tmp_path)
    assert "<b>4 of 4</b>" in whole and "of 2 seeds" not in whole
    assert "runs done." not in whole and "not measured" not in whole


def test_a_run_without_a_split_is_not_done(tmp_path: Path) -> None:
    more = {**METRICS, "fit": {"label": "fit", "task": "speech -> text", "split": "train"}}
    every = {(cell, seed): 1 for cell in ("short", "long") for seed in (0, 1)}
    assert "<b>0 of 4</b>" in written(made_up(tmp_path, every, metrics=more), tmp_path)


def test_the_title_is_the_folders_unless_an_experiment_says_otherwise(tmp_path: Path) -> None:
    assert "<h1>some folder</h1>" in written(made_up(tmp_path, {}), tmp_path)
    assert "<h1>All &lt;claims&gt;</h1>" in written(made_up(tmp_path, {}, page_title="All <claims>"), tmp_path)


def test_explanations_stand_once_and_claims_by_experiment(tmp_path: Path) -> None:
    results = made_up(tmp_path, {})
    page = write_page([results, results], tmp_path, "cpu", "twice").read_text()
    assert page.count("alone → inside: ") == 1
    assert page.count('<td rowspan="2"><a href="#tiny">') == 2
    assert page.count("<th>verdict</th>") == 2


def test_parameters_are_those_of_the_spec(tmp_path: Path) -> None:
    results = made_up(tmp_path, {})
    size = sizes(results.grid.jobs[0].recipe.spec).total
    assert parameters(results.grid.jobs[0].recipe.spec) == (size.parameters, size.trained)
    assert size.trained < size.parameters
    page = written(results, tmp_path)
    told = f'<span class="number">{shown_number(size.parameters)}</span><small>{shown_number(size.trained)} trained'
    assert page.count(told) == 2
    assert [shown_number(n) for n in (12, 1234, 1_240_000, 134_515_008, 7_240_000_000)] == [
        "12", "1.23 k", "1.24 M", "135 M", "7.24 B",
    ]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of every picture that a test draws."""
    found: list[Axes] = []
    add = Figure.add_subplot

    def noted(figure: Figure) -> Axes:
        found.append(add(figure))
        return found[-1]

    monkeypatch.setattr(Figure, "add_subplot", noted)
    return found


def test_bars_keep_the_places_of_cells_that_are_missing(tmp_path: Path, drawn: list[Axes]) -> None:
    results = made_up(tmp_path, {("long", 0): 4, ("long", 1): 5})
    picture(results, results.grid.experiment.plots[0])
    (axes,) = drawn
    assert axes.get_xlim() == (-0.5, 1.5)
    assert axes.get_ylim()[0] == 0
    assert axes.get_axisbelow() is True
    assert not any(line.get_visible() for line in axes.get_xgridlines())
    assert all(line.get_visible() for line in axes.get_ygridlines())


def test_lines_of_errors_start_at_zero(tmp_path: Path, drawn: list[Axes]) -> None:
    plot = {"title": "Errors", "x": "metrics", "metrics": ["wer", "wer"]}
    results = made_up(tmp_path, {("long", 0): 8, ("long", 1): 9}, plots=[plot])
    picture(results, results.grid.experiment.plots[0])
    assert drawn[0].get_ylim()[0] == 0
    assert all(line.get_visible() for line in drawn[0].get_xgridlines())
