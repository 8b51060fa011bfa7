"""Mistakes in an experiment's YAML: one clear line for each, before anything is trained."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.tiny_experiments import CLAIM, METRICS, experiment, problems
from helpers.tiny_runs import zippkit
from zippkit.cli.compositions import check
from zippkit.errors import SpecError, ZippkitError
from zippkit.experiment.claims import judge_claim
from zippkit.experiment.cli import lay_out_all
from zippkit.experiment.results import Results

AXIS = {"key": "train.fraction", "label": "data", "values": [0.5, 1.0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"celsl": {}}, "celsl: unknown key 'celsl'; did you mean 'cells'?"),
        ({"table": {"columns": ["wre"]}}, "table.columns: no metric is called 'wre'; did you mean 'wer'?"),
        ({"metrics": {**METRICS, "x": {"label": "x"}}}, "metrics.x: expected one of `task`, `retention`"),
        ({"claims": [{**CLAIM, "group": ["lnog"]}]}, "claims[0].group: no cell is called 'lnog'; did you mean 'long'?"),
        ({"claims": [{**CLAIM, "is": "near"}]}, "claims[0].within: near needs `within`"),
        ({"claims": [{**CLAIM, "at": 1}]}, "claims[0].at: the experiment has no axis"),
        ({"presets": {"cpu": {"values": [1]}}}, "presets.cpu.values: the experiment has no axis"),
        (
            {"axis": AXIS, "claims": [{**CLAIM, "at": 0.02}]},
            "claims[0].at: 0.02 is not on the axis; its values: 0.5, 1",
        ),
        ({"claims": [{**CLAIM, "than": []}]}, "claims[0].than: what is it below?"),
        ({"claims": [{**CLAIM, "than_value": 0.5}]}, "claims[0].than_value: `than` is given too"),
        ({"claims": [{**CLAIM, "is": "near", "within": 0.1, "by": 0.1}]}, "claims[0].by: a relative margin goes with"),
        ({"claims": [{**CLAIM, "by": 1.0}]}, "claims[0].by: nothing can be less by all of it"),
        ({"claims": [{**CLAIM, "metric": "kept", "by": 0.1}]}, "claims[0].by: a part of a change of loss"),
        ({"claims": [{**CLAIM, "than_metric": "kept"}]}, "claims[0].than_metric: a word error rate and a loss"),
        ({"metrics": {**METRICS, "x": {"label": "x", "task": "speech ->"}}}, "metrics.x.task: expected a task such as"),
        ({"metrics": {**METRICS, "x": {"label": "x", "task": "text"}}}, "metrics.x.task: expected a task such as"),
        (
            {"metrics": {**METRICS, "x": {"label": "x", "task": "speach -> text"}}},
            "metrics.x.task: no recipe is evaluated on 'speach -> text'; did you mean 'speech -> text'?",
        ),
        (
            {"metrics": {**METRICS, "x": {"label": "x", "retention": "txt"}}},
            "metrics.x.retention: no tower is called 'txt'; did you mean 'text'?",
        ),
        (
            {"presets": {"cpu": {"splits": {"tset": "dev"}}}},
            "presets.cpu.splits.tset: no split of a metric is called 'tset'; did you mean 'test'?",
        ),
        ({"seeds": [0, 1, 0]}, "seeds[2]: 0 is there twice"),
        ({"presets": {"cpu": {"seeds": [3, 3]}}}, "presets.cpu.seeds[1]: 3 is there twice"),
        ({"axis": {**AXIS, "values": [0.5, 0.5]}}, "axis.values[1]: 0.5 is there twice"),
        (
            {"plots": [{"title": "E", "x": "cells", "metrics": ["wer", "kept"]}]},
            "plots[0].metrics: word error rates and losses (nats per token) have no common axis",
        ),
        (
            {"metrics": {**METRICS, "x": {"label": "x", "geometric_mean": ["wer", "kept"]}}},
            "metrics.x.geometric_mean: 'kept' is a change of loss",
        ),
        ({"recipe": "base/{preset}.yaml"}, "base/cpu.yaml is not there"),
        ({"cells": {"a": {"label": "A", "spec": "nowhere.yaml"}}}, "cells.a.spec: nowhere.yaml is not there"),
        ({"recipe": 3}, "recipe: expected a path to a recipe, or the recipe itself, got 3"),
        ({"presets": {"gpu": {}}}, "presets: no preset is called 'cpu'"),
        (
            {"cells": {"long": {"label": "L", "set": {"train.step": 1}}}},
            "cells.long.set.train.step: unknown key 'step'",
        ),
        ({"cells": {"long": {"label": "L", "drop": ["pretrain.txt"]}}}, "no key 'pretrain.txt'; did you mean 'text'?"),
        (
            {"cells": {"long": {"label": "L", "set": {"spec.towers.text.freeze": 3}}}},
            "cells.long.set.spec.towers.text.freeze: expected true, false",
        ),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = experiment(tmp_path, **({"plots": [], "claims": []} | change))
    told = problems(folder)
    assert message in told
    assert re.fullmatch(rf"{folder}/tiny.yaml:\d+: .*", told), "expected one line"


def test_mistakes_in_the_base_name_its_own_line(tmp_path: Path) -> None:
    folder = experiment(tmp_path)
    base = folder / "base" / "recipe.yaml"
    base.write_text(base.read_text().replace("batch_size: 4", "batch_sise: 4", 1))
    assert re.search(rf"{base}:\d+: train.batch_sise: unknown key .*in cell 'short'", problems(folder))


def test_check_knows_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = experiment(tmp_path) / "tiny.yaml"
    check(file)
    assert capsys.readouterr().out == f"{file}: tiny is sound\n"
    with pytest.raises(ZippkitError, match="leave them out"):
        check(file, ["train.steps=1"])
    file = experiment(tmp_path, presets={"cpu": {}, "gpu": {"set": {"train.step": 1}}}) / "tiny.yaml"
    with pytest.raises(SpecError, match=r"presets\.gpu\.set\.train\.step: unknown key"):
        check(file)


def test_mistakes_end_the_command_with_2(tmp_path: Path) -> None:
    done = zippkit("experiment", experiment(tmp_path, celsl={}), "--only", "tiny")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "did you mean 'cells'?" in done.stderr


def test_two_files_of_one_name(tmp_path: Path) -> None:
    folder = experiment(tmp_path)
    shutil.copy(folder / "tiny.yaml", folder / "tiny2.yaml")
    assert (
        problems(folder) == f"{folder}/tiny2.yaml:1: name: 'tiny' is the name of {folder}/tiny.yaml too; give one "
        "of them another"
    )


def test_names_of_only_are_stripped(tmp_path: Path) -> None:
    folder = experiment(tmp_path)
    data = yaml.safe_load((folder / "tiny.yaml").read_text())
    (folder / "other.yaml").write_text(yaml.safe_dump({**data, "name": "other"}))
    assert len(lay_out_all(folder, ["tiny", " other"], "cpu")) == 2


def test_what_only_another_preset_measures_is_no_mistake(tmp_path: Path) -> None:
    presets = {"cpu": {"values": [1.0]}, "gpu": {"values": [0.02]}}
    axis = {"key": "train.fraction", "label": "data", "values": [0.5, 1.0]}
    folder = experiment(tmp_path, axis=axis, presets=presets, claims=[{**CLAIM, "at": 0.02}])
    (grid,) = lay_out_all(folder, None, "cpu")
    judged = judge_claim(Results(grid, {}), grid.experiment.claims[0])
    assert (judged.verdict.value, judged.why) == ("not measured", "0.02 is not among this preset's values")
