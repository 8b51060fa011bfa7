"""The public face of a compiled spec: one object that collates, masks, scores, describes and saves itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from zippkit import loss as _loss
from zippkit.batch import Batch, Segment, collate
from zippkit.checkpoint import MANIFEST, Checkpoint, read_checkpoint, restore, write_checkpoint
from zippkit.compiler import build_model
from zippkit.errors import CheckpointError
from zippkit.graph import Graph
from zippkit.mask_view import Masks, mask_views
from zippkit.model import ZippedModel
from zippkit.plan import Plan
from zippkit.recipe import Recipe, derived_recipe
from zippkit.spec import CompositionSpec


@dataclass(frozen=True)
class Composition:
    """A compiled spec."""

    spec: CompositionSpec
    graph: Graph
    model: ZippedModel

    @property
    def plan(self) -> Plan:
        """Every operation in order, before a batch prunes it."""
        return self.model.plan

    def collate(self, examples: Sequence[Sequence[Segment]], multiple: int = 1, ids: Sequence[str] = ()) -> Batch:
        """Examples, each a list of segments in linear order, to one padded batch (see `zippkit.batch.collate`)."""
        return collate(examples, self.graph.towers, multiple, ids)

    def masks(self, batch: Batch) -> Masks:
        """Each tower's and each link's mask: a few integers per segment, a dense rendering, text and pictures."""
        return mask_views(self.graph, batch)

    @property
    def recipe(self) -> Recipe:
        """The training recipe that follows from the spec (see `zippkit.recipe.derived_recipe`)."""
        return derived_recipe(self.spec)

    def loss(self, logits: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Nats per predicted token, of each tower and ``total`` (see `zippkit.loss.loss`)."""
        return _loss.loss(logits, batch)

    def save(self, folder: str | Path) -> None:
        """Write weights, standalone spec and manifest; complete or not at all.

        Raises:
            CheckpointError: the folder holds something that is not a checkpoint.
        """
        write_checkpoint(Path(folder), Checkpoint(self.spec, self.model.state_dict()))


def compile(spec: CompositionSpec, *, seed: int = 0, load_weights: bool = True) -> Composition:
    """Build the model of a spec; new parameters depend on ``seed`` alone.

    Raises:
        SpecError: everything that is wrong with the spec.
        CheckpointError: weights that do not fit.
    """
    model, graph = build_model(spec, seed=seed, load_weights=load_weights)
    return Composition(spec, graph, model)


def load(path: str | Path) -> Composition:
    """The composition that `Composition.save` wrote, or the finished model of a run folder.

    Raises:
        CheckpointError: not there, cut short, changed, or of another composition.
    """
    folder = Path(path)
    if not (folder / MANIFEST).exists() and (folder / "recipe.yaml").exists():
        if not (folder / "model").exists():
            raise CheckpointError(f"{folder}: this run is not finished; start its recipe again to go on")
        folder = folder / "model"
    checkpoint = read_checkpoint(folder)
    zipped = compile(checkpoint.spec, load_weights=False)
    restore(zipped.model, checkpoint, zipped.spec, folder)
    return zipped
