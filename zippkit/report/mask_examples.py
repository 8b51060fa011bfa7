"""Who sees whom in a run's two shortest examples, as pictures for its page."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from zippkit.batch.batch import Batch, Segment
from zippkit.batch.mask_view import mask_views
from zippkit.composition import Composition
from zippkit.data.dataset import Dataset
from zippkit.errors import DataError
from zippkit.report.html import arrowed
from zippkit.spec.recipe import Recipe
from zippkit.training.data_checks import check_tokenizers
from zippkit.training.run_data import shown_dataset
from zippkit.training.run_folder import RunFolder
from zippkit.training.task_data import TaskData


class MaskExamples(NamedTuple):
    """Pictures of masks, and where their tokens come from."""

    words: str
    pictures: list[Markup]


class _Shown(NamedTuple):
    """A batch, what its text tokens are called by modality, and a sentence on where it comes from."""

    batch: Batch
    names: dict[str, Callable[[int], str]]
    words: str


def mask_examples(run: RunFolder, recipe: Recipe, zipped: Composition) -> MaskExamples:
    """Draw the masks of the shortest examples of a task, or of made-up tokens where the dataset is gone."""
    from zippkit.report.plots import mask_picture

    batch, names, words = _shown(run, recipe, zipped)
    masks = mask_views(zipped.graph, batch, names)
    pictures = [Markup(mask_picture(masks, row, f"mask-{row}")) for row in range(batch.size)]
    return MaskExamples(words, pictures)


def _shown(run: RunFolder, recipe: Recipe, zipped: Composition) -> _Shown:
    tasks = recipe.tasks()
    task = next((task for task in tasks if task.conditions), tasks[0])
    split = recipe.evaluate.split
    try:
        dataset = shown_dataset(recipe, task)
        check_tokenizers(dataset, zipped.graph.modalities, run.fingerprints(), [task])
        data = TaskData(task, dataset, dataset.split(split), zipped.graph.readers)
        shortest = [int(i) for i in np.argsort(data.lengths, kind="stable")[:2]]
        batch = zipped.collate([data.segments(i) for i in shortest])
        words = f"The shortest examples of {arrowed(str(task))} in {split}: {', '.join(data.ids(shortest))}."
        return _Shown(batch, {name: _naming(dataset, zipped, name) for name in data.modalities}, words)
    except DataError as error:
        made_up = [Segment(name, _something(zipped, name)) for name in task.modalities or zipped.graph.modalities]
        words = f"No examples of the dataset can be shown here ({error}), so these token ids are made up."
        return _Shown(zipped.collate([made_up]), {}, words)


def _naming(dataset: Dataset, zipped: Composition, modality: str) -> Callable[[int], str]:
    """How token ids are shown: text spelt out, a state of continuous inputs as ``~``, all else as its number."""
    if zipped.graph.modalities[modality].continuous:
        return lambda _: "~"
    if not dataset.manifest.modalities[modality].is_text:
        return str
    tokenizer = dataset.text_tokenizer(modality)
    return lambda token: tokenizer.decode([token])


def _something(zipped: Composition, tower: str) -> list[int] | NDArray[np.float32]:
    """Token ids that were never in any dataset, or noise."""
    modality = zipped.graph.modalities[tower]
    if modality.continuous:
        return zipped.graph.towers[tower].example_inputs(4, seed=0)
    frame = {modality.frame.begin, modality.frame.end} if modality.frame else set()
    return [i for i in range(modality.vocab_size or 8) if i not in frame][:4]
