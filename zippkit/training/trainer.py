"""Training: pre-train the towers that the recipe names, then the whole composition; resumable at any step."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor

from zippkit.checkpoint.checkpoint import Checkpoint
from zippkit.checkpoint.filling import restore
from zippkit.checkpoint.frozen_hashes import Origins, check_frozen
from zippkit.checkpoint.manifest import check_whole
from zippkit.checkpoint.reading import read_checkpoint
from zippkit.checkpoint.references import TOWERS, Reference, find_references
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.checkpoint.writing import write_checkpoint
from zippkit.composition import Composition, compile
from zippkit.data.dataset import Dataset
from zippkit.errors import CheckpointError, DataError, ZippkitError
from zippkit.loading import frozen_at_random
from zippkit.model.weights import check_hashes
from zippkit.plan.graph import build_graph
from zippkit.plan.parts import CHECKPOINT_MANIFEST
from zippkit.spec.derived_recipe import learning_rates, single_tower
from zippkit.spec.kinds import TOWER_FILE
from zippkit.spec.phase import Phase
from zippkit.spec.recipe import Recipe
from zippkit.spec.task import Task
from zippkit.system.progress import progress
from zippkit.training.batch_order import BatchOrder
from zippkit.training.device import Backend, backend
from zippkit.training.metrics import Metrics
from zippkit.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer, set_rate
from zippkit.training.run_folder import RunFolder
from zippkit.training.starting_point import check_start_from, composition_to_train
from zippkit.training.step import build_step
from zippkit.training.task_data import TaskData, check_tokenizers


class InterruptedRunError(ZippkitError):
    """The run was asked to stop; everything up to its last step is saved."""


def train(recipe: Recipe, out: Path) -> None:
    """Run a recipe in the folder ``out``, going on where an earlier start of the same recipe stopped.

    Raises:
        ZippkitError: data, weights or folder that do not fit; a loss that is not finite; a frozen tensor that moved.
        InterruptedRunError: stopped by a signal, after a checkpoint was saved.
    """
    run = RunFolder(out)
    device = backend(recipe.device)
    dataset = Dataset.open(recipe.data)
    tasks = _task_data(recipe, dataset)
    is_new = not run.recipe_file.exists()
    if is_new:
        check_start_from(recipe, dataset)
    with run.locked("trains"), _stop_signals() as stop:
        run.keep_recipe(recipe)
        run.keep_tokenizers(dataset)
        for name, message in frozen_at_random(recipe).items() if is_new else ():
            print(f"warning: towers.{name}: {message}", file=sys.stderr)
        for name, phase in recipe.pretrain.items():
            if (run.tower(name) / TOWER_FILE).exists():
                _check_tower(run.tower(name))
            else:
                began = time.monotonic()
                alone = compile(single_tower(recipe.spec, name), seed=recipe.seed)
                own = [tasks[Task((), name)].part(phase.fraction, recipe.seed)]
                _PhaseRun(f"pretrain.{name}", alone, phase, own, recipe.seed, run, device, stop).finish()
                kind = recipe.spec.towers[name].kind
                write_tower(run.tower(name), alone.model.tower(name), kind, alone.sources.get(name))
                run.add_seconds(f"pre-train {name}", time.monotonic() - began)
        if run.model.exists():
            _check_model(run)
        else:
            began = time.monotonic()
            zipped = composition_to_train(recipe, run)
            share = recipe.train.fraction
            all_tasks = [tasks[task].part(share, recipe.seed) for task in recipe.tasks()]
            phase_run = _PhaseRun("train", zipped, recipe.train, all_tasks, recipe.seed, run, device, stop)
            phase_run.finish()
            write_checkpoint(run.model, phase_run.checkpoint(with_optimizer=False), root=run.path)
            run.add_seconds("train", time.monotonic() - began)


def _check_tower(folder: Path) -> None:
    """A tower that was pre-trained by an earlier start must still be what was written."""
    try:
        check_hashes(folder)
    except CheckpointError as error:
        fix = f"remove {folder}, and the tower is pre-trained again, from the last checkpoint"
        raise CheckpointError(f"{error}; {fix}") from None


def _check_model(run: RunFolder) -> None:
    """The finished model of an earlier start must still be what was written."""
    try:
        check_whole(run.model)
    except CheckpointError as error:
        older, fix = _newest_whole(run.checkpoints("train")), "no checkpoint of the run is whole: choose another --out"
        if older:
            fix = f"the checkpoint {older.name} is whole: remove {run.model}, and the run goes on from there"
        raise CheckpointError(f"{error}; {fix}") from None


def _newest_whole(checkpoints: Sequence[Path]) -> Path | None:
    """The last of the checkpoints whose files are what was written."""
    for folder in reversed(checkpoints):
        with suppress(CheckpointError):
            check_whole(folder)
            return folder
    return None


def _task_data(recipe: Recipe, dataset: Dataset) -> dict[Task, TaskData]:
    """The data of every task of every phase, checked against the towers before anything is started."""
    graph = build_graph(recipe.spec)
    tasks = dict.fromkeys([*(Task((), name) for name in recipe.pretrain), *recipe.tasks()])
    check_tokenizers(dataset, graph.modalities, tasks=tasks)
    split = dataset.split(recipe.split)
    found: dict[Task, TaskData] = {}
    wrong: list[str] = []
    for task in tasks:
        try:
            found[task] = TaskData(task, dataset, split, graph.readers)
            found[task].check_lengths(graph.readers)
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        raise DataError("\n".join(dict.fromkeys(wrong)))
    return found


class _Stop:
    """Whether a signal asked the run to stop."""

    asked = False


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Turn the first SIGINT or SIGTERM into a request to stop after the step; a second one ends the process at once."""
    stop = _Stop()
    earlier: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        stop.asked = True
        signal.signal(number, earlier[number])

    for number in map(int, (signal.SIGINT, signal.SIGTERM)):
        earlier[number] = signal.getsignal(number)
        try:
            signal.signal(number, ask)
        except ValueError:  # Not the main thread: whoever runs it there handles signals.
            break
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            if signal.getsignal(number) is ask:
                signal.signal(number, handler)


class _PhaseRun:
    """One phase under way."""

    def __init__(
        self,
        label: str,
        zipped: Composition,
        phase: Phase,
        tasks: Sequence[TaskData],
        seed: int,
        run: RunFolder,
        device: Backend,
        stop: _Stop,
    ) -> None:
        self.label, self.zipped, self.phase, self.run, self.device, self.stop = label, zipped, phase, run, device, stop
        self.model = zipped.model.to(device.device()).train()
        self.fingerprints = {name: print_ for name, print_ in run.fingerprints().items() if name in zipped.graph.towers}
        self.tasks = tasks
        self.sampler = BatchOrder([task.lengths for task in tasks], phase.batch_size, seed)
        self.optimizer = build_optimizer(self.model, learning_rates(zipped.spec, phase), phase)
        self.step = 0
        self.waiting: list[Mapping[str, Tensor | float]] = []
        """Values of the steps since the last line of metrics."""
        self.origins = zipped.origins
        self.sources = zipped.sources
        saved = run.checkpoints(label)
        # Once is enough: that frozen tensors rest is checked at every save.
        self.references = self._go_on(saved) if saved else find_references(zipped.spec, self.model, zipped.sources)
        files = {name: reference.files for name, reference in self.references.items()}
        self.origins = self.origins.completed(zipped.spec, self.model, files=files)
        check_frozen(self.origins.tensors, zipped.spec, self.model)

    def _go_on(self, saved: Sequence[Path]) -> Mapping[str, Reference]:
        """Resume from the newest checkpoint; where it is damaged, say which older one is not."""
        try:
            return self._resume(saved[-1])
        except CheckpointError as error:
            older = _newest_whole(saved)
            if older in (None, saved[-1]):
                raise
            fix = f"the older checkpoint {older.name} is whole: remove {saved[-1]} to go on from there"
            raise CheckpointError(f"{error}; {fix}") from None

    def _resume(self, folder: Path) -> Mapping[str, Reference]:
        checkpoint = read_checkpoint(folder)
        restore(self.model, checkpoint, self.zipped.spec, folder)
        restore_optimizer(self.optimizer, checkpoint.optimizer, str(folder))
        if not {"step", "frozen"} <= checkpoint.extra.keys():
            raise CheckpointError(f"{folder}: not a checkpoint of a run; its {CHECKPOINT_MANIFEST} tells no step")
        self.step = int(checkpoint.extra["step"])
        self.waiting = list(checkpoint.extra.get("waiting", ()))
        self.sources = checkpoint.sources
        # The proof goes back to the first source, not to this resume.
        self.origins = Origins.from_manifest(checkpoint.extra)
        return checkpoint.references

    def checkpoint(self, with_optimizer: bool = True) -> Checkpoint:
        """The state after the last step; refuses if a frozen tensor moved."""
        check_frozen(self.origins.tensors, self.zipped.spec, self.model)
        extra = {"phase": self.label, "step": self.step, "tokenizers": self.fingerprints, **self.origins.as_manifest()}
        if self.waiting:
            extra["waiting"] = self.waiting
        optimizer = optimizer_tensors(self.optimizer) if with_optimizer else {}
        return Checkpoint(self.zipped.spec, self.model.state_dict(), optimizer, extra, self.references, self.sources)

    def _save(self) -> None:
        folder = self.run.checkpoint(self.label, self.step)
        if not folder.exists():
            write_checkpoint(folder, self.checkpoint(), root=self.run.path)
            # What stands beside a trained tower's weights is taken along from save to save: older ones are dropped.
            inside = {name: folder / TOWERS / name for name in self.zipped.spec.towers}
            self.sources = {**self.sources, **{name: place for name, place in inside.items() if place.is_dir()}}
            self.run.drop_old_checkpoints(self.label)

    def finish(self) -> None:
        """Run the steps that are left."""
        metrics = Metrics(self.run.path, self.label, self.step)
        try:
            with progress(self.label, self.phase.steps) as advance:
                self._steps(metrics, advance)
        finally:
            metrics.close()

    def _steps(self, metrics: Metrics, advance: Any) -> None:
        step_on = build_step(self.model, self.optimizer, self.phase, self.device)
        n_tokens, began = 0, time.monotonic()
        while self.step < self.phase.steps:
            draw = self.sampler.draw(self.step)
            task = self.tasks[draw.task]
            examples = [task.segments(i) for i in draw.indices]
            ids, multimodal = task.ids(draw.indices), task.task.multimodal
            batch = self.zipped.collate(examples, self.phase.pad_multiple, ids, multimodal)
            n_tokens += batch.n_tokens
            factor = self.phase.rate(self.step)
            set_rate(self.optimizer, factor)
            self.waiting.append(step_on(batch.to(self.device.device())))
            self.step += 1
            # Looked at once: a signal may arrive at any moment below.
            stop = self.stop.asked
            save = self.step % self.phase.save_every == 0 or self.step == self.phase.steps
            log = save or self.step % self.phase.log_every == 0
            if stop or log:
                numbers = self._numbers()
                self.waiting = list(numbers)
            if log:
                losses = _means(numbers)
                self.waiting = []
                others = {"gradient_norm": losses.pop("gradient_norm")}
                rate = n_tokens / (time.monotonic() - began)
                n_tokens, began = 0, time.monotonic()
                metrics.write(self.step, losses, **others, tokens_per_second=rate, rate_factor=factor)
                advance(self.step, f"loss {losses['total']:.3f}  {rate:.0f} tokens/s")
            # What is stopped between two lines keeps its values, so that the next line means the same steps as ever.
            if stop or save:
                self._save()
            if stop:
                raise InterruptedRunError(
                    f"stopped after step {self.step} of {self.label}; start again to go on from there"
                )

    def _numbers(self) -> list[dict[str, float]]:
        """The waiting values as numbers, which is also when the host waits for the device.

        Raises:
            ZippkitError: a loss or gradient was not finite, with the ids of its batch.
        """
        first = self.step - len(self.waiting)
        found: list[dict[str, float]] = []
        for i, values in enumerate(self.waiting):
            numbers = {name: float(value) for name, value in values.items()}
            if not all(math.isfinite(number) for number in numbers.values()):
                draw = self.sampler.draw(first + i)
                ids = ", ".join(self.tasks[draw.task].ids(draw.indices))
                saved = self.run.checkpoints(self.label)
                good = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
                seen = ", ".join(f"{name} {number}" for name, number in numbers.items())
                raise ZippkitError(
                    f"{self.label}: step {first + i + 1} is not finite ({seen}); {good}; its batch: {ids}"
                )
            found.append(numbers)
        return found


def _means(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each value over the steps that have it: a task's steps have the losses of its towers."""
    table: dict[str, list[float]] = {}
    for values in steps:
        for name, number in values.items():
            table.setdefault(name, []).append(number)
    return {name: sum(numbers) / len(numbers) for name, numbers in table.items()}
