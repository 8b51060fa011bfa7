"""Training: pre-train the towers that the recipe names, then the whole composition; resumable at any step."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from zippkit.composition import Composition, compile
from zippkit.data.dataset import Dataset
from zippkit.errors import ZippkitError
from zippkit.loading import frozen_at_random
from zippkit.plan.graph import build_graph
from zippkit.spec.derived_recipe import single_tower
from zippkit.spec.kinds import TOWER_FILE
from zippkit.spec.phase import Phase, Stage
from zippkit.spec.recipe import Recipe
from zippkit.spec.yaml_document import dotted
from zippkit.training.data_checks import check_tokenizers
from zippkit.training.dev_data import DevData, dev_data
from zippkit.training.dev_watch import DevWatch
from zippkit.training.device import Backend, backend
from zippkit.training.going_on import Change, consequences, planned
from zippkit.training.mixture import Mixture
from zippkit.training.parallel import World, open_world
from zippkit.training.phase_run import PhaseRun
from zippkit.training.run_data import dev_sources, mixtures, open_datasets
from zippkit.training.run_folder import RunFolder
from zippkit.training.source_plan import check_places
from zippkit.training.stage import Rest, check_stages
from zippkit.training.starting_point import bare_towers, begun, check_start_from, composition_to_train
from zippkit.training.stop_signals import InterruptedRunError, StopRequest, stop_signals
from zippkit.training.trackers.tracking import Tracking, open_tracking
from zippkit.training.whole_checkpoints import check_model, check_tower, is_finished

__all__ = ["InterruptedRunError", "train"]


def train(recipe: Recipe, out: Path) -> None:
    """Run a recipe in the folder ``out``, going on where an earlier start of the same recipe stopped.

    Raises:
        ZippkitError: data, weights or folder that do not fit; a loss that is not finite; a frozen tensor that moved.
        InterruptedRunError: stopped by a signal, after a checkpoint was saved.
    """
    device = backend(recipe.device)
    with open_world(device.name) as world:
        _train(recipe, RunFolder(out), device, world)


def _train(recipe: Recipe, run: RunFolder, device: Backend, world: World) -> None:
    _check_parallel(recipe, world)
    datasets = open_datasets(recipe)
    learnt = mixtures(recipe, datasets)
    check_stages(recipe)
    if world.size > 1:
        check_places(recipe, learnt)
    dev = _dev_data(recipe, datasets)
    tracking = open_tracking(recipe, run.path) if world.leads else Tracking()
    with ExitStack() as held, stop_signals(echo=5.0 if world.size > 1 else 0.0) as stop:
        world.lead(lambda: _begin(recipe, run, datasets, held))
        training = _Training(recipe, run, learnt, dev, device, stop, tracking, world)
        with tracking.ending():
            for name, phase in recipe.pretrain.items():
                training.pretrain(name, phase)
            training.train_together()


def _begin(recipe: Recipe, run: RunFolder, datasets: Mapping[str, Dataset], held: ExitStack) -> None:
    """Start the run, or go on with it, and keep its folder locked as long as ``held`` is."""
    is_new = not run.recipe_file.exists()
    if is_new:
        check_start_from(recipe, datasets.values())
    held.enter_context(run.locked("trains"))
    _tell_changes(run, recipe, run.keep_recipe(recipe))
    run.keep_tokenizers(datasets)
    if is_new:
        _warn_of_random_towers(recipe)


def _check_parallel(recipe: Recipe, world: World) -> None:
    """Refuse what several ranks cannot do, before anything is read.

    Raises:
        ZippkitError: names each place in the recipe.
    """
    phases = [(each.key_path, each.phase) for each in recipe.main_phases]
    phases += [(("pretrain", name), phase) for name, phase in recipe.pretrain.items()]
    wrong = [
        f"{dotted((*key_path, *place))}: {message}"
        for key_path, phase in phases
        for place, message in recipe.parallel.misfits(phase)
    ]
    if wrong and world.size > 1:
        raise ZippkitError("\n".join(wrong))


@dataclass(frozen=True)
class _Training:
    """A run under way; each phase that an earlier start finished is checked instead of run again."""

    recipe: Recipe
    run: RunFolder
    learnt: Mapping[str, Mixture]
    """What each phase learns from, by its label."""
    dev: DevData | None
    device: Backend
    stop: StopRequest
    tracking: Tracking
    world: World

    def pretrain(self, name: str, phase: Phase) -> None:
        """Train one tower alone, and write it into the run."""
        folder = self.run.tower(name)
        if (folder / TOWER_FILE).exists():
            check_tower(folder)
            return
        with self._timed(f"pre-train {name}"):
            alone = compile(single_tower(self.recipe.spec, name), seed=self.recipe.seed)
            trained = self._phase_run(f"pretrain.{name}", alone, phase)
            trained.finish()
            trained.write_tower(name, folder)

    def train_together(self) -> None:
        """Train the whole composition, stage after stage, and write the finished model."""
        if self.run.model.exists():
            check_model(self.run, self.recipe)
            if is_finished(self.run, self.recipe):
                return
            self.world.lead(self.run.set_scores_aside)
        phases, first = self.recipe.main_phases, begun(self.recipe, self.run)
        for i, each in enumerate(phases[first:], first):
            with self._timed(each.label):
                with self.world.leader_first():
                    zipped = composition_to_train(self.recipe, self.run, bare_towers(self.recipe, self.world.size))
                rest = Rest(each.phase.freeze) if isinstance(each.phase, Stage) else Rest()
                before = self.run.checkpoints(phases[i - 1].label)[-1] if i else None
                watch = DevWatch(self.dev, self.run.best(each.label))
                last = self._phase_run(each.label, zipped, each.phase, rest, before, watch)
                last.finish()
        last.write_model(planned(self.recipe))

    def _phase_run(
        self,
        label: str,
        zipped: Composition,
        phase: Phase,
        rest: Rest | None = None,
        before: Path | None = None,
        watch: DevWatch | None = None,
    ) -> PhaseRun:
        learnt, seed, rest = self.learnt[label], self.recipe.seed, rest or Rest()
        device, stop, among = self.device, self.stop, (self.world, self.recipe.parallel)
        return PhaseRun(
            label, zipped, phase, learnt, seed, self.run, device, stop, rest, before, watch, self.tracking, *among
        )

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Keep how long a phase took, once it is finished."""
        began = time.monotonic()
        yield
        self.world.lead(lambda: self.run.add_seconds(phase, time.monotonic() - began))


def _tell_changes(run: RunFolder, recipe: Recipe, changes: Sequence[Change]) -> None:
    """Say with which changes a run goes on, and what follows from them."""
    if changes:
        print(f"{run.path}: goes on with another recipe", file=sys.stderr)
    for change in changes:
        print(f"  {change}", file=sys.stderr)
    for line in consequences(changes, recipe, run.reached(recipe)):
        print(f"  {line}", file=sys.stderr)


def _warn_of_random_towers(recipe: Recipe) -> None:
    for section, message in frozen_at_random(recipe).items():
        print(f"warning: {dotted(section)}: {message}", file=sys.stderr)


def _dev_data(recipe: Recipe, datasets: Mapping[str, Dataset]) -> DevData | None:
    """Return what is measured while training; None where the recipe has no `validation`.

    Raises:
        DataError: as `dev_data`.
    """
    if recipe.validation is None:
        return None
    graph, sources = build_graph(recipe.spec), dev_sources(recipe, datasets)
    for source in sources:
        check_tokenizers(source.dataset, graph.modalities, tasks=source.tasks)
    return dev_data(recipe.validation, sources, graph)
