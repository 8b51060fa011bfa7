"""Accuracy of a model's prediction of which modality follows a segment, if any."""

from __future__ import annotations

from zippkit.batch.batch import IGNORE
from zippkit.composition import Composition
from zippkit.data.dataset import Dataset
from zippkit.evaluation.evaluation_file import NextScore
from zippkit.model.inference import inference
from zippkit.model.next_modality import PREFIX
from zippkit.spec.recipe import Recipe
from zippkit.spec.task import Task
from zippkit.training.task_data import TaskData


@inference()
def score_next(task: Task, zipped: Composition, dataset: Dataset, split: str, recipe: Recipe) -> NextScore:
    """Compare what is told at the end of each segment of whole examples with what comes there."""
    data = TaskData(task, dataset, dataset.split(split), zipped.graph.readers)
    device = next(zipped.model.parameters()).device
    size, n_examples = recipe.evaluate.batch_size, min(len(data), recipe.evaluate.limit or len(data))
    n_right, n_segments = 0, 0
    zipped.model.eval()
    for start in range(0, n_examples, size):
        examples = [data.segments(i) for i in range(start, min(start + size, n_examples))]
        batch = zipped.collate(examples, multimodal=task.multimodal).to(device)
        logits = zipped.model(batch)
        for name, tokens in batch.towers.items():
            assert tokens.following is not None, "the model tells what comes next"
            ends = tokens.following != IGNORE
            n_right += int((logits[PREFIX + name].argmax(dim=-1) == tokens.following)[ends].sum())
            n_segments += int(ends.sum())
    return NextScore(str(task), n_right / n_segments, n_segments)
