"""The paper's experiments: every recipe of every preset resolves, and says what the paper says."""

from __future__ import annotations

from pathlib import Path

import pytest

from zippkit.experiment.cli import lay_out_all
from zippkit.experiment.runner import tasks_of
from zippkit.plan.graph import build_graph

PAPER = Path(__file__).parents[2] / "recipes" / "paper"
NAMES = ("asr", "tts", "length", "data", "ablation", "lr")


@pytest.fixture(autouse=True)
def text_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for the story model, whose weights are not looked into before a run begins."""
    for folder in ("data", "data/gpu"):
        (tmp_path / folder / "paper_text").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("preset", ["smoke", "cpu", "gpu"])
def test_every_cell_of_every_preset_resolves(preset: str) -> None:
    grids = lay_out_all(PAPER, None, preset)
    assert tuple(grid.experiment.name for grid in grids) == NAMES
    for grid in grids:
        assert grid.experiment.claims and all(claim.paper for claim in grid.experiment.claims)
        assert ("mean nothing" in grid.preset.note) == (preset == "smoke")
        axis_values = grid.values
        for claim in grid.experiment.claims:
            assert preset == "smoke" or claim.at is None or claim.at in axis_values
    jobs = [job for grid in grids for job in grid.jobs]
    # Tables 1 and 2 and Figure 2 are the same runs, and others are shared as well.
    runs = {name: {job.key for job in jobs if job.experiment == name} for name in NAMES}
    assert runs["asr"] == runs["tts"] == runs["length"]
    assert runs["data"] & runs["lr"] and runs["asr"] & runs["ablation"]
    assert len(tasks_of(jobs)) < 0.85 * len(jobs)


@pytest.mark.parametrize("preset", ["smoke", "cpu", "gpu"])
def test_the_systems_are_the_papers(preset: str) -> None:
    (grid,) = lay_out_all(PAPER, ["asr"], preset)
    recipes = {job.cell: job.recipe for job in grid.jobs}
    frozen, trained, single = (recipes[name] for name in ("zipper_frozen", "zipper_unfrozen", "single_decoder"))
    assert [tower.freeze for tower in frozen.spec.towers.values()] == [True, True]
    assert [tower.freeze for tower in trained.spec.towers.values()] == [True, False]
    assert single.spec.towers["text"].freeze is False
    assert single.spec.towers["text"].config == trained.spec.towers["text"].config
    for other in (frozen, single):
        assert other.train.model_copy(update={"learning_rate": 1.0}) == trained.train.model_copy(
            update={"learning_rate": 1.0}
        )
        assert (other.data, other.pretrain.get("text")) == (trained.data, trained.pretrain.get("text"))


@pytest.mark.parametrize(("preset", "most"), [("smoke", 4), ("cpu", 5), ("gpu", 10)])
def test_the_ablations_have_as_many_sites_as_they_say(preset: str, most: int) -> None:
    (grid,) = lay_out_all(PAPER, ["ablation"], preset)
    for job in grid.jobs:
        n_sites = {"sites_1": 1, "sites_2": 2}.get(job.cell, most)
        # In each of the two directions.
        assert len(build_graph(job.recipe.spec).sites) == 2 * n_sites


def test_the_text_tower_is_pre_trained() -> None:
    for preset in ("cpu", "gpu"):
        for job in lay_out_all(PAPER, ["asr"], preset)[0].jobs:
            assert job.recipe.spec.towers["text"].weights is not None
            assert set(job.recipe.pretrain) == set(job.recipe.spec.towers) - {"text"}
