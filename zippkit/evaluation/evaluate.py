"""Scores of a run: word error rate on its tasks, and what each tower lost of its own modality."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from zippkit.checkpoint.frozen_hashes import check_frozen
from zippkit.composition import Composition, load
from zippkit.data.dataset import Dataset
from zippkit.data.normalize import word_error_rate
from zippkit.errors import DataError, ZippkitError
from zippkit.evaluation.evaluation_file import FILE, Answer, Evaluated, Retention, SpeechScore, TaskScore
from zippkit.evaluation.next_modality_scores import score_next
from zippkit.evaluation.overrides import as_told, explanation, overridden, place_of_scores
from zippkit.evaluation.recognisers.base import MissingScorerError, Scorer, open_scorer
from zippkit.evaluation.speech_scores import ends_in_speech, score_speech, transcript_of
from zippkit.model.inference import inference
from zippkit.model.run_tower import tower_logits
from zippkit.spec.recipe import Recipe
from zippkit.spec.task import Task
from zippkit.system.files import write_json
from zippkit.system.progress import progress
from zippkit.training.answers import answers
from zippkit.training.data_checks import check_tokenizers
from zippkit.training.device import backend
from zippkit.training.run_data import ScoredDataset, scored_datasets
from zippkit.training.run_folder import RunFolder
from zippkit.training.starting_point import starting_point
from zippkit.training.task_data import TaskData


def evaluate(
    path: Path, split: str | None = None, data: Path | None = None, overrides: Sequence[str] = ()
) -> Evaluated:
    """Score a finished run and write ``evaluation.json`` into it.

    Scores of other settings than the recipe's do not take the place of the run's own: these stay, and the others go
    into a folder of ``evaluations/``. The file says which they were.

    Args:
        path: the run.
        split: of the dataset, instead of the recipe's.
        data: another dataset folder.
        overrides: other settings of `evaluate`, as ``key=value`` (see `zippkit.evaluation.overrides.overridden`).

    Raises:
        SpecError: settings that do not fit.
        ZippkitError: no finished run, no such split, data of another tokenizer, no task that ends in text or
            speech, or the scorer that the recipe names is not there.
    """
    run = RunFolder(path)
    recipe = overridden(run.recipe(), overrides)
    told = as_told(overrides, split, data)
    with run.locked("evaluates"):
        folder = place_of_scores(run, told)
        result = replace(_evaluated(run, recipe, split, data, folder), overrides=told)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, asdict(result))
    if folder != run.path:
        print(explanation(folder), file=sys.stderr)
    return result


def _evaluated(run: RunFolder, recipe: Recipe, split: str | None, data: Path | None, folder: Path) -> Evaluated:
    began = time.monotonic()
    after = load(run.path)
    check_frozen(after.origins.tensors, after.spec, after.model)
    device = backend(recipe.device)
    device.place(after.model)
    before = starting_point(recipe, run)
    device.place(before.model)
    scored = scored_datasets(recipe, data)
    for each in scored:
        check_tokenizers(each.dataset, after.graph.modalities, run.fingerprints(), each.tasks)
    work = [_Work(folder, recipe, before, after, each) for each in scored]
    if not any(each.scores for each in work) and recipe.scored_tasks():
        raise ZippkitError("no task of this run ends in text or in speech units, in which words can be counted")
    splits = [split] if split else recipe.evaluate.all_splits
    first, *others = [each.on(name) for each in work for name in splits]
    run.add_seconds("evaluate", time.monotonic() - began)
    return replace(first, more=tuple(others))


class _Work:
    """State shared by all splits of one evaluation: compositions, dataset, tasks and scorer."""

    def __init__(
        self, folder: Path, recipe: Recipe, before: Composition, after: Composition, scored: ScoredDataset
    ) -> None:
        tasks, dataset = scored.tasks, scored.dataset
        self._folder, self._recipe, self._dataset, self._label = folder, recipe, dataset, scored.label
        self._before, self._after = before, after
        self._texts = [t for t in tasks if t.conditions and dataset.manifest.modalities[t.target].is_text]
        self._speech = [task for task in tasks if ends_in_speech(task, dataset)]
        self.scores = bool(self._texts or self._speech)
        """Whether words can be counted in the answers of some task."""
        self._scorer, self._reason = _scorer(recipe) if self._speech else (None, "")

    def on(self, split: str) -> Evaluated:
        """The scores on one split."""
        before, after, dataset, recipe = self._before, self._after, self._dataset, self._recipe
        scores = tuple(_score(task, before, after, dataset, split, recipe) for task in self._texts)
        reasons = {task: self._why_not(task, split) for task in self._speech}
        skipped = tuple(f"{task}: {reason}" for task, reason in reasons.items() if reason)
        for line in skipped:
            print(f"not scored: {line}", file=sys.stderr)
        spoken = tuple(self._spoken([task for task in self._speech if not reasons[task]], split))
        known = dataset.manifest.modalities
        with_head = [name for name, tower in after.graph.towers.items() if tower.predicts and name in known]
        retention = tuple(_retention(name, before, after, dataset, split, recipe) for name in with_head)
        tells = [*self._texts, *self._speech] if after.graph.layout.tells_next else []
        told = tuple(score_next(task, after, dataset, split, recipe) for task in tells)
        return Evaluated(self._label.format(split), (*scores, *spoken), retention, skipped, told)

    def _why_not(self, task: Task, split: str) -> str:
        if self._reason:
            return self._reason
        return "" if transcript_of(task, self._dataset, split) else f"split {split!r} has no text beside the speech"

    def _spoken(self, tasks: Sequence[Task], split: str) -> Iterator[SpeechScore]:
        for task in tasks:
            if self._scorer is not None:
                how, after = self._recipe.evaluate, self._after
                label = self._label.format(split)
                yield score_speech(task, after, self._dataset, split, how, self._scorer, self._folder, label)


def _scorer(recipe: Recipe) -> tuple[Scorer | None, str]:
    """The recipe's scorer, or why there is none; one that is named must be there."""
    how = recipe.evaluate
    try:
        return open_scorer(how.scorer_kind, how.scorer_config), ""
    except MissingScorerError as error:
        if how.scorer is not None:
            raise
        return None, str(error)


def _score(
    task: Task, before: Composition, after: Composition, dataset: Dataset, split: str, recipe: Recipe
) -> TaskScore:
    data = TaskData(task, dataset, dataset.split(split), after.graph.readers)
    indices = list(range(min(len(data), recipe.evaluate.limit or len(data))))
    if not indices:
        raise DataError(f"{dataset.path}: split {split!r} is empty")
    references = [str(data.item(i, task.target)) for i in indices]
    decode, how = dataset.text_tokenizer(task.target).decode, recipe.evaluate
    found: list[list[str]] = []
    for zipped, what in ((before, "before"), (after, "after")):
        with progress(f"{task} ({what})", len(indices)) as advance:
            found.append(
                answers(zipped, data, decode, indices, how.batch_size, how.max_tokens, how.sampling, tell=advance)
            )
    told = tuple(Answer(*each) for each in zip(data.ids(indices), references, found[1], strict=True))
    return TaskScore(str(task), word_error_rate(references, found[0]), word_error_rate(references, found[1]), told)


def _own_data(name: str, dataset: Dataset, split: str, preferred: str | None) -> TaskData:
    """A tower's own modality, on the split that is preferred if it has any of it."""
    if preferred is not None and len(dataset.split(preferred).having([name])):
        split = preferred
    return TaskData(Task((), name), dataset, dataset.split(split))


@inference()
def _retention(
    name: str, before: Composition, after: Composition, dataset: Dataset, split: str, recipe: Recipe
) -> Retention:
    """The loss of the tower by itself before training, and of the same rows run through the whole composition."""
    data = _own_data(name, dataset, split, recipe.evaluate.retention)
    totals = torch.zeros(3, dtype=torch.float64)
    size = recipe.evaluate.batch_size
    n_examples = min(len(data), recipe.evaluate.limit or len(data))
    device = next(after.model.parameters()).device
    for start in range(0, n_examples, size):
        examples = [data.segments(i) for i in range(start, min(start + size, n_examples))]
        batch = after.collate(examples, multimodal=False).to(device)
        alone = {name: tower_logits(before.model.tower(name).eval(), batch.towers[name])}
        # Among its own ids, as generation chooses; those of an extended vocabulary come behind them.
        inside = {name: after.model.eval()(batch)[name][..., : alone[name].shape[-1]]}
        n_predicted = float((batch.towers[name].targets >= 0).sum())
        losses: list[Tensor] = [after.loss(logits, batch)[name] for logits in (alone, inside)]
        totals += torch.tensor([float(losses[0]) * n_predicted, float(losses[1]) * n_predicted, n_predicted])
    return Retention(
        name, after.spec.towers[name].frozen_whole, float(totals[0] / totals[2]), float(totals[1] / totals[2])
    )
