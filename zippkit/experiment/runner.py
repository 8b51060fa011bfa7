"""Run a grid: every recipe once, from where it stopped, and on past those that fail."""

from __future__ import annotations

import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from zippkit.errors import ZippkitError
from zippkit.evaluation.evaluate import evaluate
from zippkit.evaluation.evaluation_file import parse_evaluation
from zippkit.evaluation.recognisers.base import open_scorer
from zippkit.experiment.grid import Job
from zippkit.experiment.store import Record, Store
from zippkit.spec.recipe import Recipe
from zippkit.training.run_data import open_datasets
from zippkit.training.run_folder import RunFolder
from zippkit.training.starting_point import check_start_from
from zippkit.training.trainer import InterruptedRunError, train


@dataclass(frozen=True)
class Task:
    """A run, and every job that it answers."""

    key: str
    recipe: Recipe
    splits: tuple[str, ...]
    jobs: tuple[Job, ...]

    def __str__(self) -> str:
        more = len(self.jobs) - 1
        return f"{self.jobs[0]}" + (f" (and {more} more like it)" if more else "")


def tasks_of(jobs: Sequence[Job]) -> list[Task]:
    """The runs that jobs need, in their order: jobs with equal recipes share one."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.key, []).append(job)
    return [
        Task(key, group[0].recipe, tuple(dict.fromkeys(split for job in group for split in job.splits)), tuple(group))
        for key, group in groups.items()
    ]


def run_all(jobs: Sequence[Job], store: Store, after_each: Callable[[], None] = lambda: None) -> dict[str, Record]:
    """Run, resume or leave alone each job's run; a run that failed before is tried again.

    Returns:
        What became of each, by the hash of its recipe.

    Raises:
        InterruptedRunError: stopped by a signal; start again to go on.
        ZippkitError: another process is at work in the same folder.
    """
    tasks = tasks_of(jobs)
    records: dict[str, Record] = {}
    spent: list[float] = []
    with store.locked():
        left = [task for task in tasks if _open(store.record(task.key), task)]
        _say(f"{len(tasks)} runs for {len(jobs)} cells and seeds; {len(tasks) - len(left)} are done already")
        for number, task in enumerate(left, len(tasks) - len(left) + 1):
            _say(f"[{number}/{len(tasks)}] {task}")
            began = time.monotonic()
            record = _run(task, store)
            store.write(task.key, record)
            spent.append(time.monotonic() - began)
            rest = sum(spent) / len(spent) * (len(tasks) - number)
            said = "done" if record.status == "done" else f"FAILED: {record.error.strip().splitlines()[-1]}"
            _say(f"[{number}/{len(tasks)}] {said}, {spent[-1]:.0f} s; about {_duration(rest)} left")
            after_each()
        for task in tasks:
            records[task.key] = store.record(task.key) or Record(status="failed", error="not run")
    return records


def _open(record: Record | None, task: Task) -> bool:
    return record is None or record.status == "failed" or bool(_left(record, task))


def _left(record: Record, task: Task) -> list[str]:
    """Splits to evaluate: those that have not been, and those in which only now somebody can listen to speech."""
    unheard = record.unheard(task.splits)
    return record.lacks(task.splits) + (unheard if unheard and _can_hear(task.recipe) else [])


def _can_hear(recipe: Recipe) -> bool:
    """Whether the recipe's scorer can be opened here and now."""
    try:
        open_scorer(recipe.evaluate.scorer_kind, recipe.evaluate.scorer_config)
    except ZippkitError:
        return False
    return True


def _run(task: Task, store: Store) -> Record:
    """Train and evaluate; whatever goes wrong is this run's alone."""
    known = store.record(task.key) or Record(status="failed")
    evaluations, heard = dict(known.evaluations), set(known.heard)
    began = time.monotonic()
    error = ""
    try:
        run = _train(task, store)
        for split in _left(known, task):
            evaluations[split] = _evaluate(run, split)
            if parse_evaluation(evaluations[split]).skipped and _can_hear(task.recipe):
                heard.add(split)
    except InterruptedRunError:
        raise
    except ZippkitError as mistake:
        error = str(mistake)
    except Exception:  # A bug or a full memory in one cell must not cost the night's other cells.
        error = traceback.format_exc()
    seconds = known.seconds + time.monotonic() - began
    status: Any = "failed" if error else "done"
    versions = list(dict.fromkeys([*known.versions, version("zippkit")]))
    return Record(
        status=status, error=error, seconds=seconds, evaluations=evaluations, heard=sorted(heard), versions=versions
    )


def _train(task: Task, store: Store) -> RunFolder:
    recipe = task.recipe
    if not store.run(task.key).recipe_file.exists():
        check_start_from(recipe, open_datasets(recipe).values())
    run = store.begin(task.key, recipe)
    store.lend_towers(recipe, run)
    train(recipe, run.path)
    store.keep_towers(recipe, run)
    # Steps to go back to are of no use to a finished run, and a grid has many.
    shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    return run


def _evaluate(run: RunFolder, split: str) -> dict[str, Any]:
    evaluation: dict[str, Any] = json.loads(json.dumps(asdict(evaluate(run.path, split))))
    return evaluation


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
