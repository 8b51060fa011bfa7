"""The public face of a compiled spec: one object that collates, masks, scores, describes and saves itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from zippkit.batch.batch import Batch, Segment
from zippkit.batch.collate import collate
from zippkit.batch.mask_view import Masks, mask_views
from zippkit.checkpoint.checkpoint import Checkpoint
from zippkit.checkpoint.filling import fill, restore
from zippkit.checkpoint.frozen_hashes import Origins
from zippkit.checkpoint.reading import read_checkpoint
from zippkit.checkpoint.references import check_references, find_references, source_of
from zippkit.checkpoint.writing import write_checkpoint
from zippkit.errors import CheckpointError, DataError
from zippkit.model import loss as _loss
from zippkit.model.bare import has_no_values
from zippkit.model.build import build_model
from zippkit.model.dtypes import concrete
from zippkit.model.meta_device import meta_model
from zippkit.model.weights import module_state
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.graph import Graph
from zippkit.plan.parts import Transfer, checkpoint_folder, compare
from zippkit.plan.plan import Plan
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.derived_recipe import derived_recipe
from zippkit.spec.recipe import Recipe


@dataclass(frozen=True)
class Composition:
    """A compiled spec."""

    spec: CompositionSpec
    graph: Graph
    model: ZippedModel
    sources: Mapping[str, Path] = field(default_factory=dict)
    """Where the weights of each tower that has any came from."""
    origins: Origins = field(default_factory=Origins)
    """Hashes of each frozen tensor in the first source of its tower; only of towers that have a source."""
    transfer: Transfer | None = None
    """The parts that were taken from the checkpoint that it was grown from (`load`)."""
    bare: Mapping[str, Path] = field(default_factory=dict)
    """Towers that have no values yet, and the weights of which ranks that share them will read their rows."""

    @property
    def plan(self) -> Plan:
        """Every operation in order, before a batch prunes it."""
        return self.model.plan

    def collate(
        self,
        examples: Sequence[Sequence[Segment]],
        multiple: int = 1,
        ids: Sequence[str] = (),
        multimodal: bool | Sequence[bool] = True,
        pack: int | None = None,
    ) -> Batch:
        """Collate examples, each a list of segments in linear order, to one padded batch.

        Rows pass the input projections unless ``multimodal=False`` declares them, or single ones, unimodal. With
        ``pack``, examples share rows of so many tokens. See `zippkit.batch.collate.collate`.

        Raises:
            DataError: examples that do not fit; ``pack``, where a contrastive loss compares rows.
        """
        if pack is not None and self.spec.contrastive:
            raise DataError("pack: a contrastive loss compares rows, so examples cannot share one")
        return collate(examples, self.graph.towers, multiple, ids, self.graph.layout, multimodal, pack)

    def masks(self, batch: Batch) -> Masks:
        """Each tower's and each link's mask: a few integers per segment, a dense rendering, text and pictures."""
        return mask_views(self.graph, batch)

    @property
    def recipe(self) -> Recipe:
        """The training recipe that follows from the spec (see `zippkit.spec.recipe.derived_recipe`)."""
        return derived_recipe(self.spec)

    def loss(self, logits: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Nats per predicted token, of each tower and ``total`` (see `zippkit.model.loss.loss`)."""
        return _loss.loss(logits, batch, self.model.added_losses(logits, batch))

    def save(self, folder: str | Path, *, copy_towers: bool = False) -> None:
        """Write weights, standalone spec and manifest; complete or not at all.

        A frozen tower that still is, bit for bit, what its source holds is named by path and hash, and the folder
        needs that source to be loaded. With ``copy_towers`` the source's files are copied, byte for byte, and the
        folder stands alone.

        Raises:
            CheckpointError: the folder holds something that is not a checkpoint.
        """
        references = find_references(self.spec, self.model, self.sources)
        files = {name: reference.files for name, reference in references.items()}
        extra = self.origins.completed(self.spec, self.model, files=files).as_manifest()
        checkpoint = Checkpoint(
            self.spec, module_state(self.model), extra=extra, references=references, sources=self.sources
        )
        write_checkpoint(Path(folder), checkpoint, copy_towers=copy_towers)


def compile(
    spec: CompositionSpec,
    *,
    seed: int = 0,
    load_weights: bool = True,
    device: Literal["cpu", "meta"] = "cpu",
    bare: Collection[str] = (),
) -> Composition:
    """Build the model of a spec; new parameters depend on ``seed`` alone.

    On the ``meta`` device there are modules and shapes and no values; no weights are read, and none need to be there.

    Args:
        spec: the composition.
        seed: of new parameters.
        load_weights: load those that the spec names.
        device: where it is built.
        bare: towers with weights that are left without values, where that can be, until ranks know which rows each
            keeps (`Composition.bare`).

    Raises:
        SpecError: everything that is wrong with the spec.
        CheckpointError: weights that do not fit.
    """
    spec = concrete(spec)
    if device == "meta":
        model, graph = meta_model(spec)
        return Composition(spec, graph, model)
    there = {name: source_of(spec.towers[name]) for name in bare}
    left = {name: source for name, source in there.items() if source is not None}
    model, graph = build_model(spec, seed=seed, load_weights=load_weights, sources=left, bare=left)
    found = {name: source_of(tower) for name, tower in spec.towers.items()} if load_weights else there
    sources = {name: source for name, source in found.items() if source is not None}
    origins = Origins().completed(spec, model, [f"towers.{name}" for name in sources])
    left = {name: source for name, source in left.items() if has_no_values(model.tower(name))}
    return Composition(spec, graph, model, sources, origins, bare=left)


def load(
    path: str | Path,
    *,
    spec: CompositionSpec | None = None,
    towers: Mapping[str, str | Path] | None = None,
    seed: int = 0,
) -> Composition:
    """Load the composition that `Composition.save` wrote, or the finished model of a run folder.

    Args:
        path: a checkpoint or a run.
        spec: another composition, to grow into or to take apart: towers, input projections, links and adapters are
            taken over by name, what is only in ``spec`` starts fresh, and what is only in the checkpoint is left out
            (`Composition.transfer` tells).
        towers: where frozen towers are, by name, if not where they were when the checkpoint was written.
        seed: of the parts that start fresh.

    Raises:
        CheckpointError: not there, cut short, changed, of another composition, or without its towers; every tower that
            is missing or is another one is named.
        SpecError: everything that is wrong with ``spec``.
    """
    folder = checkpoint_folder(Path(path))
    checkpoint = read_checkpoint(folder, towers)
    if spec is not None:
        return _grown(folder, checkpoint, spec, seed)
    check_references(checkpoint.references, folder)
    # Whoever can be made by its weights is, so that they are not held beside random ones.
    named = {name: reference.source for name, reference in checkpoint.references.items()}
    built = concrete(checkpoint.spec)
    model, graph = build_model(built, load_weights=False, sources=named)
    restore(model, checkpoint, built, folder)
    zipped = Composition(built, graph, model, checkpoint.sources)
    return replace(zipped, origins=_origins(checkpoint, zipped))


def _grown(folder: Path, checkpoint: Checkpoint, spec: CompositionSpec, seed: int) -> Composition:
    """The composition of ``spec``, with everything of the checkpoint that is in both."""
    spec = concrete(spec, checkpoint.sources)
    transfer, misfits = compare(checkpoint.spec, spec)
    if misfits:
        raise CheckpointError("\n".join(f"{folder}: cannot be taken over: {misfit}" for misfit in misfits))
    zipped = compile(spec, seed=seed)
    fill(zipped.model, checkpoint, folder, transfer.taken)
    new = {name: source for name, source in zipped.sources.items() if f"towers.{name}" in transfer.new}
    taken = {name: source for name, source in checkpoint.sources.items() if f"towers.{name}" in transfer.taken}
    sources = new | taken
    others = [part for part in transfer.taken if not part.startswith("towers.")]
    origins = _origins(checkpoint, zipped, transfer.taken, [*others, *(f"towers.{name}" for name in sources)])
    return replace(zipped, sources=sources, origins=origins, transfer=transfer)


def _origins(
    checkpoint: Checkpoint,
    zipped: Composition,
    taken: Collection[str] | None = None,
    sourced: Collection[str] | None = None,
) -> Origins:
    """The first sources of what is frozen, as far as they are known, once ``zipped`` is filled from the checkpoint.

    Args:
        checkpoint: knows of earlier sources.
        zipped: was filled from it.
        taken: the parts that come from it; all of them if left out.
        sourced: the parts that have any source at all; all of them if left out.
    """
    files = {name: r.files for name, r in checkpoint.references.items() if taken is None or f"towers.{name}" in taken}
    return Origins.from_manifest(checkpoint.extra, taken).completed(zipped.spec, zipped.model, sourced, files)
