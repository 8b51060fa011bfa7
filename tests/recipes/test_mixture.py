"""The paper's mixture of corpora on stand-ins: 1 : 1.26 of LibriSpeech and LibriTTS, after LibriLight."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from zippkit.composition import load
from zippkit.data.dataset import Dataset
from zippkit.evaluation.evaluate import evaluate
from zippkit.loading import load_recipe
from zippkit.training.metrics import read_metrics
from zippkit.training.run_data import mixtures, open_datasets
from zippkit.training.trainer import train

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "recipes" / "mixture"
SMALL = {"dim": 16, "n_layers": 1, "n_heads": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    specification = importlib.util.spec_from_file_location("make_mixture", FOLDER / "make_data.py")
    assert specification is not None
    assert specification.loader is not None
    made: Any = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(made)
    out = tmp_path_factory.mktemp("mixture")
    assert [dataset.path.name for dataset in made.make(out)] == ["librispeech", "libritts", "librilight"]
    return out


def overrides(data: Path, *more: str) -> list[str]:
    return [f"data.{name}.path={data / name}" for name in ("librispeech", "libritts", "librilight")] + list(more)


def test_the_corpora_are_mixed_as_the_paper_s_are(data: Path) -> None:
    recipe = load_recipe(FOLDER / "recipe.yaml", overrides(data))
    found = mixtures(recipe, open_datasets(recipe))
    assert [(str(part.task), len(part)) for part in found["pretrain.speech"].parts] == [("speech", 96)]
    assert [(str(part.task), len(part)) for part in found["pretrain.text"].parts] == [("text", 400), ("text", 504)]
    for stage in ("train.links", "train.speech"):
        listen, speak = found[stage].parts
        assert (str(listen.task), str(speak.task)) == ("speech -> text", "text -> speech")
        order = found[stage].order(32, recipe.seed)
        n_spoken = sum(order.draw(step).task for step in range(2260))
        assert n_spoken / (2260 - n_spoken) == pytest.approx(1.26, abs=0.01)


def test_it_runs_from_pre_training_to_scores(data: Path, tmp_path: Path) -> None:
    few = [f"{phase}.steps=2" for phase in ("pretrain.text", "pretrain.speech", "train[0]", "train[1]")]
    few += [f"{phase}.warmup=0" for phase in ("pretrain.text", "pretrain.speech", "train[0]")]
    few += [f"spec.towers.{tower}.config.{key}={value}" for tower in ("text", "speech") for key, value in SMALL.items()]
    few += [f"spec.links[{i}].config={{n_heads: 2}}" for i in range(2)]
    recipe = load_recipe(FOLDER / "recipe.yaml", overrides(data, *few, "evaluate.limit=4", "evaluate.max_tokens=4"))
    train(recipe, tmp_path / "run")
    phases = [line["phase"] for line in read_metrics(tmp_path / "run")]
    assert phases == ["pretrain.text", "pretrain.speech", "train.links", "train.speech"]
    assert load(tmp_path / "run").spec.name == "digits"
    assert [each.split for each in (evaluate(tmp_path / "run"),)] == ["librispeech/test"]
    assert Dataset.open(data / "librilight").modalities == ("speech",)
