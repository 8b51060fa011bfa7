"""`recipes/three_from_pairs` from end to end, on tones for speech and in few steps: data, recipes, measure."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import zippkit
from helpers.compositions import randomise
from zippkit.batch.batch import Segment
from zippkit.data.audio import write_audio
from zippkit.data.dataset import Dataset
from zippkit.data.readers import DIGITS
from zippkit.loading import load_recipe
from zippkit.training.trainer import train

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[2] / "recipes" / "three_from_pairs"
FEW = [f"pretrain.{name}.{key}" for name in ("text", "speech", "image") for key in ("steps=2", "batch_size=4")]


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    """The scripts find each other as they do when they are run."""
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))
    for name in ("make_data", "measure", "judges"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both datasets, of a chirp for each digit."""
    folder = tmp_path_factory.mktemp("three")
    (folder / "fsdd").mkdir()
    numbers = np.random.default_rng(0)
    times = np.arange(3200) / 8000
    for digit in range(10):
        for index in (0, 5, *range(10, 16)):
            pitch = 200 + 300 * digit + 3 * index + 400 * times
            wave = 0.4 * np.sin(2 * np.pi * pitch * times) + numbers.normal(0, 0.01, len(times))
            write_audio(folder / "fsdd" / f"{digit}_jo_{index}.wav", wave.astype(np.float32), 8000)
    list(importlib.import_module("make_data").make(folder / "fsdd", folder / "data", 0, False))
    return folder / "data"


def met(dataset: Dataset) -> int:
    return sum(len(dataset.split(name).having(["speech", "image"])) for name in dataset.splits)


def test_speech_and_images_meet_in_one_of_the_datasets_only(data: Path) -> None:
    pairs, every = Dataset.open(data / "three_from_pairs"), Dataset.open(data / "three_all_pairs")
    assert pairs.fingerprints == every.fingerprints
    assert met(pairs) == 0 and met(every) == 60
    assert len(pairs.split("test")) == len(every.split("test")) == 10 + 297
    # A pair is of one digit: the recording's name begins with it, and the image's own example tells it.
    words = {e.id: str(e.items["text"]) for e in every.split("train") if "text" in e.items}
    together = [e.id.split("+") for e in every.split("train") if "text" not in e.items]
    assert len(together) == 60 and all(words[said] == words[shown] for said, shown in together)


def test_the_recipe_runs_and_its_links_between_speech_and_images_stay_untouched(data: Path, tmp_path: Path) -> None:
    settings = [*FEW, "train.steps=4", "train.batch_size=4", f"data={data / 'three_from_pairs'}"]
    train(load_recipe(RECIPE / "recipe.yaml", settings), tmp_path / "run")
    measured: dict[str, Any] = importlib.import_module("measure").measure(tmp_path / "run", limit=6)
    assert json.loads((tmp_path / "run" / "three.json").read_text()) == measured
    assert (tmp_path / "run" / "three.png").stat().st_size > 1000
    assert measured["judges"]["image"] > 0.9 and measured["judges"]["speech"] > 0.9
    ways = [f"{pair}, {way}" for pair in ("speech -> image", "image -> speech") for way in ("direct", "silent")]
    assert {*ways, "speech -> text", "text -> image", "image -> speech, cascade"} <= measured.keys()
    # A link that was never trained is the identity, so nothing of the prompt arrives.
    assert measured["speech -> image, direct"]["different_answers"] == 1
    assert measured["image -> speech, direct"]["different_answers"] == 1


def test_a_judge_knows_the_digits_and_hears_nothing_in_nothing(data: Path) -> None:
    dataset = Dataset.open(data / "three_from_pairs")
    test = dataset.split("test")
    for modality in ("speech", "image"):
        judge = importlib.import_module("judges").judge(dataset, modality)
        examples = [test[int(i)] for i in test.having([modality])[:20]]
        said = judge.words(
            [*(example.items[modality] for example in examples), [], [dataset.tokenizer(modality).begin]]
        )
        assert said[-2:] == ["", ""]
        right = [word == example.items["text"] for word, example in zip(said, examples, strict=False)]
        assert np.mean(right) > 0.8 and judge.accuracy > 0.9


def test_strings_of_text_alone_count_up_and_down(data: Path) -> None:
    train = Dataset.open(data / "three_from_pairs").split("train")
    alone = [str(e.items["text"]) for e in train if e.items.keys() == {"text"}]
    assert len(alone) == 4000
    up = " ".join(2 * [*DIGITS])
    down = " ".join(2 * [*reversed(DIGITS)])
    assert all(2 <= len(text.split()) <= 8 and (text in up or text in down) for text in alone)
    assert any("nine zero" in text for text in alone) and any("zero nine" in text for text in alone)


def test_a_word_s_embedding_is_read_alike_whatever_was_heard_before_it() -> None:
    plain, by_embedding = (load_recipe(RECIPE / name) for name in ("recipe.yaml", "by_embedding.yaml"))
    assert plain.train == by_embedding.train and plain.spec.towers == by_embedding.spec.towers
    word, image = Segment("text", [4]), Segment("image", [3] * 64)
    gaps = []
    for recipe in (plain, by_embedding):
        # What the link between speech and images tells is no part of the comparison.
        links = [link for link in recipe.spec.links if {link.source, link.target} != {"speech", "image"}]
        zipped = zippkit.compile(recipe.spec.model_copy(update={"links": links}))
        randomise(zipped.model)
        alone, after = zipped.collate([[word, image]]), zipped.collate([[Segment("speech", [5, 9, 200]), word, image]])
        with torch.no_grad():
            gaps.append(float((zipped.model(alone)["image"] - zipped.model(after)["image"]).abs().max()))
    assert gaps[0] > 0.1 and gaps[1] < 1e-3


def test_the_other_recipe_differs_in_what_is_trained_alone() -> None:
    pairs, every = (load_recipe(RECIPE / name) for name in ("recipe.yaml", "all_pairs.yaml"))
    assert pairs.spec == every.spec and pairs.pretrain == every.pretrain
    assert pairs.train == every.train.model_copy(update={"tasks": pairs.train.tasks, "steps": pairs.train.steps})
    added = set(map(str, every.tasks())) - set(map(str, pairs.tasks()))
    assert added == {"speech -> image", "image -> speech"}
