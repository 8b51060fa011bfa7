"""Scores of a run: word error rate on its tasks, and what each tower lost of its own modality."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from zippkit.backend import backend
from zippkit.composition import Composition, load
from zippkit.data.dataset import Dataset
from zippkit.errors import DataError, ZippkitError
from zippkit.generation import generate_batch
from zippkit.progress import progress
from zippkit.recipe import Recipe, Task
from zippkit.run_folder import RunFolder
from zippkit.start import starting_point
from zippkit.tasks import TaskData, check_tokenizers
from zippkit.tower import tower_logits


@dataclass(frozen=True)
class Answer:
    """One example, as it should be and as it came out."""

    id: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class TaskScore:
    """Word error rates of one task."""

    task: str
    wer_before: float
    """Of the composition before its training: the links are the identity, so nothing is heard."""
    wer: float
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Retention:
    """A tower's loss on its own modality, in nats per token, alone and inside the composition."""

    tower: str
    frozen: bool
    before: float
    after: float

    @property
    def change(self) -> float:
        """Exactly 0 for a frozen tower."""
        return self.after - self.before


@dataclass(frozen=True)
class Evaluated:
    """Everything that one evaluation found."""

    split: str
    tasks: tuple[TaskScore, ...]
    retention: tuple[Retention, ...]


def word_error_rate(references: list[str], hypotheses: list[str]) -> float:
    """Errors over reference words (jiwer): substitutions, deletions and insertions."""
    import jiwer

    return float(jiwer.wer(references, hypotheses))


def evaluate(path: Path, split: str | None = None, data: Path | None = None) -> Evaluated:
    """Score a finished run and write ``evaluation.json`` into it.

    Raises:
        ZippkitError: no finished run, no such split, data of another tokenizer, or no task that ends in text.
    """
    began = time.monotonic()
    run = RunFolder(path)
    recipe = run.recipe()
    after = load(run.path)
    device = backend(recipe.device).device()
    after.model.to(device)
    before = starting_point(recipe, run)
    before.model.to(device)
    dataset = Dataset.open(data or recipe.data)
    check_tokenizers(dataset, after.graph.modalities, run.fingerprints())
    wanted = split or recipe.evaluate.split
    tasks = _text_tasks(recipe, dataset)
    scores = tuple(_score(task, before, after, dataset, wanted, recipe) for task in tasks)
    with_head = [name for name, tower in after.graph.towers.items() if not tower.continuous]
    retention = tuple(_retention(name, before, after, dataset, wanted, recipe) for name in with_head)
    result = Evaluated(wanted, scores, retention)
    run.write_json("evaluation.json", asdict(result))
    run.add_seconds("evaluate", time.monotonic() - began)
    return result


def _text_tasks(recipe: Recipe, dataset: Dataset) -> list[Task]:
    named = recipe.evaluate.tasks
    tasks = [Task.parse(text) for text in named] if named else recipe.tasks()
    texts = [task for task in tasks if task.conditions and dataset.manifest.modalities[task.target].is_text]
    if not texts:
        raise ZippkitError("no task of this run ends in text, and word errors are counted in text")
    return texts


def _score(
    task: Task, before: Composition, after: Composition, dataset: Dataset, split: str, recipe: Recipe
) -> TaskScore:
    data = TaskData(task, dataset, dataset.split(split), after.graph.readers)
    indices = list(range(min(len(data), recipe.evaluate.limit or len(data))))
    if not indices:
        raise DataError(f"{dataset.path}: split {split!r} is empty")
    references = [str(data.item(i, task.target)) for i in indices]
    decode = dataset.text_tokenizer(task.target).decode
    found: list[list[str]] = []
    for zipped, what in ((before, "before"), (after, "after")):
        hypotheses: list[str] = []
        with progress(f"{task} ({what})", len(indices)) as advance:
            for start in range(0, len(indices), recipe.evaluate.batch_size):
                prompts = [data.prompt(i) for i in indices[start : start + recipe.evaluate.batch_size]]
                rows = generate_batch(zipped, prompts, [task.target], recipe.evaluate.max_tokens)
                hypotheses += [decode(row[0].tokens) for row in rows]
                advance(len(hypotheses))
        found.append(hypotheses)
    answers = tuple(Answer(*each) for each in zip(data.ids(indices), references, found[1], strict=True))
    return TaskScore(str(task), word_error_rate(references, found[0]), word_error_rate(references, found[1]), answers)


@torch.inference_mode()
def _retention(
    name: str, before: Composition, after: Composition, dataset: Dataset, split: str, recipe: Recipe
) -> Retention:
    """The loss of the tower by itself before training, and of the same rows run through the whole composition."""
    data = TaskData(Task((), name), dataset, dataset.split(split))
    totals = torch.zeros(3, dtype=torch.float64)
    size = recipe.evaluate.batch_size
    n_examples = min(len(data), recipe.evaluate.limit or len(data))
    device = next(after.model.parameters()).device
    for start in range(0, n_examples, size):
        batch = after.collate([data.segments(i) for i in range(start, min(start + size, n_examples))]).to(device)
        alone = {name: tower_logits(before.model.tower(name).eval(), batch.towers[name])}
        inside = after.model.eval()(batch)
        n_predicted = float((batch.towers[name].targets >= 0).sum())
        losses: list[Tensor] = [after.loss(logits, batch)[name] for logits in (alone, inside)]
        totals += torch.tensor([float(losses[0]) * n_predicted, float(losses[1]) * n_predicted, n_predicted])
    frozen = not any(p.requires_grad for p in after.model.tower(name).parameters())
    return Retention(name, frozen, float(totals[0] / totals[2]), float(totals[1] / totals[2]))
