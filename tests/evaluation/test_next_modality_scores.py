"""How often the head tells what comes next: heads that always say the same thing, on rows of which that is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zippkit
from helpers.tiny_runs import spec, tiny_recipe
from zippkit.composition import Composition
from zippkit.data.dataset import Dataset
from zippkit.evaluation.evaluation_file import NextScore
from zippkit.evaluation.next_modality_scores import score_next
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.recipe import Recipe
from zippkit.spec.task import Task

TEXT, SPEECH, NOTHING = 0, 1, 2
"""What a head of text and speech can tell."""


@pytest.fixture(scope="module")
def zipped() -> Composition:
    return zippkit.compile(CompositionSpec.model_validate(spec(next={})))


@torch.no_grad()
def saying(zipped: Composition, **answers: int) -> Composition:
    """The composition, whose heads say this whatever they see."""
    for tower, answer in answers.items():
        out = zipped.model.get_submodule(f"next.{tower}.out")
        for name, parameter in out.named_parameters():
            parameter.zero_()
            if name == "bias":
                parameter[answer] = 1.0
    return zipped


def recipe(folder: Path, limit: int | None) -> Recipe:
    return tiny_recipe(folder, evaluate={"split": "test", "limit": limit, "batch_size": 4})


@pytest.mark.parametrize(
    "speech, text, right", [(TEXT, NOTHING, 1.0), (TEXT, TEXT, 0.5), (NOTHING, NOTHING, 0.5), (NOTHING, SPEECH, 0.0)]
)
def test_the_end_of_each_segment_counts_once(
    zipped: Composition, tmp_path: Path, speech: int, text: int, right: float
) -> None:
    """Speech is followed by text, and text by nothing."""
    said, task = recipe(tmp_path, None), Task(("speech",), "text")
    found = score_next(task, saying(zipped, speech=speech, text=text), Dataset.open(said.data), "test", said)
    assert found == NextScore("speech -> text", right, 12), "six examples of two segments, in batches of four"


def test_no_more_examples_than_the_recipe_asks_for(zipped: Composition, tmp_path: Path) -> None:
    said, task = recipe(tmp_path, 5), Task(("speech",), "text")
    found = score_next(task, saying(zipped, speech=TEXT, text=NOTHING), Dataset.open(said.data), "test", said)
    assert (found.accuracy, found.n_segments) == (1.0, 10)
