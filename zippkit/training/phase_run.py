"""One phase of a run: the training loop, its lines of metrics, its checkpoints, and going on from one of them."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from zippkit.batch.batch import Batch
from zippkit.checkpoint.checkpoint import Checkpoint, tower_state
from zippkit.checkpoint.filling import restore
from zippkit.checkpoint.frozen_hashes import Origins, check_frozen, frozen_here
from zippkit.checkpoint.reading import read_checkpoint
from zippkit.checkpoint.references import TOWERS, Reference, find_references, mapped_reference
from zippkit.checkpoint.saver import Saver
from zippkit.checkpoint.together import Together
from zippkit.checkpoint.tower_folder import write_tower_state
from zippkit.composition import Composition
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.model.bare import fill_bare, moved
from zippkit.model.layers import set_dropout
from zippkit.model.weights import module_state
from zippkit.plan.parts import CHECKPOINT_MANIFEST
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.parallel import Parallel
from zippkit.spec.phase import Phase
from zippkit.system.progress import progress
from zippkit.training.dev_watch import DevWatch
from zippkit.training.device import Backend
from zippkit.training.feed import Feed
from zippkit.training.metrics import Metrics
from zippkit.training.mixture import Mixture
from zippkit.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer, set_rate
from zippkit.training.packing_check import check_packing
from zippkit.training.parallel import World
from zippkit.training.prefetch import Prefetch
from zippkit.training.randomness import drawn_for
from zippkit.training.regions import Regions
from zippkit.training.run_folder import RunFolder
from zippkit.training.sharding import Shards
from zippkit.training.source_plan import open_cache
from zippkit.training.stage import Rest
from zippkit.training.step import build_step
from zippkit.training.stop_signals import InterruptedRunError, StopRequest
from zippkit.training.trackers.tracking import Tracking
from zippkit.training.whole_checkpoints import advising_older


class PhaseRun:
    """One phase under way, at ``step``; it goes on from the newest checkpoint that the run has of it."""

    def __init__(
        self,
        label: str,
        zipped: Composition,
        phase: Phase,
        learnt: Mixture,
        seed: int,
        run: RunFolder,
        device: Backend,
        stop: StopRequest,
        rest: Rest,
        before: Path | None = None,
        watch: DevWatch | None = None,
        tracking: Tracking | None = None,
        world: World | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        self.world = world or World()
        self.label, self.zipped, self.phase, self.run, self.device, self.stop = label, zipped, phase, run, device, stop
        self.rest, self.seed = rest, seed
        rest.begin(zipped.model)
        self.model = (moved(zipped.model, device.device()) if zipped.bare else device.place(zipped.model)).train()
        set_dropout(self.model, phase.dropout)
        self.fingerprints = {name: print_ for name, print_ in run.fingerprints().items() if name in zipped.graph.towers}
        self.step = 0
        self.watch, self.tracking = watch or DevWatch(), tracking
        self.unlogged: list[Mapping[str, Tensor | float]] = []
        """Losses and gradient norms of the steps since the last line of metrics."""
        self.told = ""
        """The last evaluation, in words."""
        self.origins = zipped.origins
        self.sources = zipped.sources
        self.resting: Mapping[str, str] | None = None
        self.saver = Saver(run.path, Together.of_all(), in_background=phase.save_async)
        saved = run.checkpoints(label)
        # Once is enough: that frozen tensors rest is checked at every save.
        if saved:
            self.references = self._resume(saved)
        elif before is not None:
            self.references = self._restored(before).references
        else:
            self.references = find_references(zipped.spec, self.model, zipped.sources)
            self._refer_to_bare()
        files = {name: reference.files for name, reference in self.references.items()}
        self.origins = self.origins.completed(zipped.spec, self.model, files=files)
        check_frozen(self.origins.tensors, zipped.spec, self.model)
        if phase.pack:
            check_packing(zipped, learnt.parts, label)
        with self.world.leader_first():
            self.source_cache = open_cache(phase, zipped, learnt.parts, device, run.path, run.fingerprints())
        rest.look(self.model, self.resting)
        self.feed = Feed(zipped, phase, learnt, seed, self.world, self.source_cache, device.static)
        regional = phase.compile and device.compiles == "regions"
        self.regions = Regions(self.model, device.compile) if regional else None
        self.shards = Shards(self.model, self.world, parallel, zipped.spec, narrow=phase.parameters == "bf16")
        for name in zipped.bare:
            fill_bare(self.model.tower(name), self.references[name].source, device.device())
        rest.share(self.model)
        self.frozen = frozen_here(self.origins.tensors, zipped.spec, self.model)
        """Hashes of what the spec freezes, as this rank holds it."""
        self.optimizer = build_optimizer(self.model, learning_rates(zipped.spec, phase), phase, self.shards)
        if saved:
            self._restore_optimizer(saved)

    def _refer_to_bare(self) -> None:
        """Name the towers that have no values yet by what they will be filled with."""
        hashes: dict[str, str] = {}
        for name, source in self.zipped.bare.items():
            reference, tensors = mapped_reference(self.model.tower(name), source, self.saver.together)
            self.references = {**self.references, name: reference}
            hashes |= {f"towers.{name}.{key}": digest for key, digest in tensors.items()}
        self.origins = replace(self.origins, tensors={**self.origins.tensors, **hashes})

    def finish(self) -> None:
        """Run the steps that are left.

        Raises:
            ZippkitError: a loss or gradient was not finite, or a frozen tensor moved.
            InterruptedRunError: a signal asked to stop; the last step is saved.
        """
        metrics = Metrics(self.run.path, self.label, self.step, self.tracking, keeps=self.world.leads)
        try:
            steps = range(self.step, self.phase.steps)
            with (
                progress(self.label, self.phase.steps) as advance,
                Prefetch(self.feed.make, steps) as ahead,
                self.saver.finishing(),
            ):
                self._train(metrics, advance, ahead)
        finally:
            metrics.close()
        if self.watch.stopped and self.step < self.phase.steps:
            print(f"{self.label}: stopped after step {self.step} of {self.phase.steps}; {self.watch}", file=sys.stderr)

    def _train(self, metrics: Metrics, advance: Any, ahead: Prefetch[list[Batch | None]]) -> None:
        train_on = build_step(self.model, self.optimizer, self.phase, self.device, self.shards, self.regions)
        n_tokens, began = 0, time.monotonic()
        while not self.over:
            batches, shares, asked = self.feed.take(ahead, self.stop.asked)
            n_tokens += sum(batch.n_tokens for batch in batches)
            rate_factor = self.phase.rate(self.step)
            set_rate(self.optimizer, rate_factor)
            with drawn_for(self.seed, self.label, self.step, self.device, self.world.rank):
                told = {"shares": shares} if shares else {}
                self.unlogged.append(train_on(*(self.device.put(batch) for batch in batches), **told))
            self.step += 1
            # Looked at once: a signal may arrive at any moment below. Several ranks stop where they agreed to.
            stop = self.stop.asked if self.world.size == 1 else asked
            last = self.step == self.phase.steps
            save, look = last or self.step % self.phase.save_every == 0, self.watch.due(self.step, last=last)
            log = save or look or self.step % self.phase.log_every == 0
            if stop or log:
                self.unlogged = list(self._numbers())
            if log:
                speed = self.world.sums({"tokens": n_tokens})["tokens"] / (time.monotonic() - began)
                dev = self._evaluate(advance) if look else {}
                n_tokens, began = 0, time.monotonic()
                self._log(metrics, advance, speed, rate_factor, dev)
            # What is stopped between two lines keeps its values, so that the next line means the same steps as ever.
            if stop or save or self.over:
                self._save()
            if stop:
                raise InterruptedRunError(
                    f"stopped after step {self.step} of {self.label}; start again to go on from there"
                )

    @property
    def over(self) -> bool:
        """Whether no step is left, or the dev split says that more of them are of no use."""
        return self.step >= self.phase.steps or self.watch.stopped

    def _evaluate(self, advance: Any) -> dict[str, float]:
        """Measure on the dev split; what is better than anything before is kept beside the last checkpoints."""
        given = self.source_cache.in_fp32().complete if self.source_cache is not None else lambda batch: batch
        tell = partial(_tell_evaluation, advance, self.step)
        with self.shards.together():
            dev = self.watch.look(self.zipped, self.step, tell, given)
        if self.watch.standing.step == self.step and self.watch.best is not None:
            self.saver.save(self.watch.best, self.checkpoint(with_optimizer=False))
        return dev

    def _numbers(self) -> list[dict[str, float]]:
        """Return the unlogged values as numbers, which is also when the host waits for the device.

        Raises:
            ZippkitError: a loss or gradient was not finite, with the ids of its batch.
        """
        first = self.step - len(self.unlogged)
        found = whole_numbers(self.world, self.unlogged)
        for step, numbers in enumerate(found, first):
            if not all(math.isfinite(number) for number in numbers.values()):
                raise ZippkitError(self._not_finite(step, numbers))
        return found

    def _not_finite(self, step: int, numbers: Mapping[str, float]) -> str:
        saved = self.run.checkpoints(self.label)
        good = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        seen = ", ".join(f"{name} {number}" for name, number in numbers.items())
        return f"{self.label}: step {step + 1} is not finite ({seen}); {good}; its batch: {self.feed.ids(step)}"

    def _log(self, metrics: Metrics, advance: Any, speed: float, rate_factor: float, dev: Mapping[str, float]) -> None:
        """Write the means of the unlogged values, and start to collect anew; ``speed`` is in tokens per second."""
        losses = _means(self.unlogged)
        self.unlogged = []
        norm = losses.pop("gradient_norm")
        others = {"gradient_norm": norm, "tokens_per_second": speed, "rate_factor": rate_factor}
        metrics.write(self.step, losses, dev, **others)
        self.told = "  ".join(f"{name} {value:.3f}" for name, value in dev.items()) or self.told
        advance(self.step, f"loss {losses['total']:.3f}  {speed:.0f} tokens/s{self.told and '  dev: '}{self.told}")

    def checkpoint(self, with_optimizer: bool = True) -> Checkpoint:
        """Return the state after the last step.

        Raises:
            CheckpointError: a frozen tensor moved.
        """
        self.saver.wait()
        self.saver.together.each(self._check_resting)
        self._take_along()
        extra = {"phase": self.label, "step": self.step, "tokenizers": self.fingerprints, **self.origins.as_manifest()}
        extra |= self.watch.as_manifest()
        if self.unlogged:
            extra["waiting"] = self.unlogged
        if self.rest.hashes:
            extra["resting"] = dict(self.rest.hashes)
        optimizer = self.shards.dealt(optimizer_tensors(self.optimizer)) if with_optimizer else {}
        state = module_state(self.model)
        return Checkpoint(self.zipped.spec, state, optimizer, extra, self.references, self.sources)

    def _check_resting(self) -> None:
        check_frozen(self.frozen, self.zipped.spec, self.model)
        self.rest.check(self.model)

    def write_model(self, planned: Mapping[str, Any]) -> None:
        """Write the finished model: the state after the last step, or the best one.

        Args:
            planned: what decides that the run is finished (`zippkit.training.going_on.planned`); is kept with it.

        Raises:
            CheckpointError: the best checkpoint was damaged, or a frozen tensor moved.
        """
        self.world.lead(lambda: self.watch.drop_others(self.watch.best))
        if self.watch.wants_best and self.watch.best is not None:
            best = read_checkpoint(self.watch.best, together=self.saver.together)
            restore(self.model, best, self.zipped.spec, self.watch.best)
            self.step, self.unlogged = int(best.extra["step"]), []
        last = self.checkpoint(with_optimizer=False)
        with self.saver.finishing():
            self.saver.save(self.run.model, replace(last, extra={**last.extra, "planned": planned}))

    def write_tower(self, name: str, folder: Path) -> None:
        """Write a tower by itself, as a folder that a spec's ``weights`` can name."""
        state, spec = tower_state(module_state(self.model), name), self.zipped.spec.towers[name]
        write_tower_state(
            folder, state, spec.kind, spec.settings, self.zipped.sources.get(name), together=self.saver.together
        )

    def _save(self) -> None:
        self.saver.wait()
        folder, best = self.run.checkpoint(self.label, self.step), self.watch.best
        if not self.saver.together.first(folder.exists):
            self.saver.save(folder, self.checkpoint(), lambda: self._drop_older(best))

    def _drop_older(self, best: Path | None) -> None:
        self.run.drop_old_checkpoints(self.label)
        self.watch.drop_others(best)

    def _take_along(self) -> None:
        """What stands beside a trained tower's weights goes from save to save: older ones are dropped."""
        for last in self.run.checkpoints(self.label)[-1:]:
            inside = {name: last / TOWERS / name for name in self.zipped.spec.towers}
            self.sources = {**self.sources, **{name: place for name, place in inside.items() if place.is_dir()}}

    def _resume(self, saved: Sequence[Path]) -> Mapping[str, Reference]:
        """Go on from the newest checkpoint, and return its references."""
        folder = saved[-1]
        with advising_older(saved):
            checkpoint = self._restored(folder)
        self.step = int(checkpoint.extra["step"])
        self.unlogged = list(checkpoint.extra.get("waiting", ()))
        self.watch.resume(checkpoint.extra)
        self.resting = checkpoint.extra.get("resting", {})
        return checkpoint.references

    def _restore_optimizer(self, saved: Sequence[Path]) -> None:
        folder = saved[-1]
        with advising_older(saved):
            state = self.shards.taken(read_checkpoint(folder, together=self.saver.together).optimizer)
            restore_optimizer(self.optimizer, state, str(folder))

    def _restored(self, folder: Path) -> Checkpoint:
        """Take over the model of a checkpoint, of this phase or of the stage before it."""
        checkpoint = read_checkpoint(folder, together=self.saver.together)
        restore(self.model, checkpoint, self.zipped.spec, folder)
        if not {"step", "frozen"} <= checkpoint.extra.keys():
            raise CheckpointError(f"{folder}: not a checkpoint of a run; its {CHECKPOINT_MANIFEST} tells no step")
        # The proof goes back to the first source, not to this resume.
        self.origins = Origins.from_manifest(checkpoint.extra)
        self.sources = checkpoint.sources
        return checkpoint


def _tell_evaluation(advance: Any, step: int, said: str) -> None:
    advance(step - 1, f"evaluates: {said}")


def whole_numbers(world: World, steps: Sequence[Mapping[str, Tensor | float]]) -> list[dict[str, float]]:
    """The values of steps as numbers; losses, of which each rank has its part, added up over all of them."""
    found = [{name: float(value) for name, value in values.items()} for values in steps]
    if world.size > 1:
        # What is a number already was added up before it was saved.
        parts = {
            f"{i} {name}": float(value)
            for i, values in enumerate(steps)
            for name, value in values.items()
            if isinstance(value, Tensor) and name != "gradient_norm"
        }
        for key, total in world.sums(parts).items():
            i, _, name = key.partition(" ")
            found[int(i)][name] = total
    return found


def _means(steps: Sequence[Mapping[str, Tensor | float]]) -> dict[str, float]:
    """Return the mean of each value over the steps that have it: a task's steps have the losses of its towers."""
    table: dict[str, list[float]] = {}
    for values in steps:
        for name, number in values.items():
            table.setdefault(name, []).append(float(number))
    return {name: sum(numbers) / len(numbers) for name, numbers in table.items()}
