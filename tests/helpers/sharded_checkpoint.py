"""What each rank does in the tests of checkpoints that several of them write and read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import zippkit
from helpers.compositions import link, make_spec, randomise, tower
from zippkit.batch.batch import Segment
from zippkit.checkpoint.checkpoint import Checkpoint
from zippkit.checkpoint.filling import restore
from zippkit.checkpoint.reading import read_checkpoint
from zippkit.checkpoint.references import find_references
from zippkit.checkpoint.together import ALONE, Together
from zippkit.checkpoint.writing import write_checkpoint
from zippkit.model.bare import fill_bare
from zippkit.model.build import build_model
from zippkit.model.pieces import piece
from zippkit.model.zipped_model import ZippedModel


def composition(source: Path, seed: int) -> zippkit.Composition:
    """A frozen tower with a source, one that is trained, and one that shares its weights."""
    towers = {
        "text": tower(weights=str(source), freeze=True),
        "speech": tower(2, dim=24, config={"tied": True}),
        "sound": {"share_with": "speech"},
    }
    spec = make_spec(towers, [link("speech", "text", every=2), link("text", "speech", every=1)])
    zipped = zippkit.compile(spec)
    for name, part in zipped.model.named_children():
        randomise(part if name != "towers" else zipped.model.tower("speech"), seed)
    return zipped


def save(
    folder: Path, zipped: zippkit.Composition, optimizer: Mapping[str, Tensor], together: Together = ALONE
) -> None:
    """Write a checkpoint of a run."""
    references = find_references(zipped.spec, zipped.model, zipped.sources)
    extra = {"step": 3, "frozen": zipped.origins.tensors}
    whole = Checkpoint(zipped.spec, zipped.model.state_dict(), optimizer, extra, references, zipped.sources)
    write_checkpoint(folder, whole, together=together)


def optimizer_of(model: nn.Module) -> dict[str, Tensor]:
    """A state of all that is trained."""
    state = {f"{name}:exp_avg": p.detach() * 2 for name, p in model.named_parameters() if p.requires_grad}
    return state | {"step": torch.tensor(3.0)}


def shard(model: ZippedModel) -> None:
    """What a run does: each layer a unit, and the root; what is frozen and what has no rows stays whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    alone = {p for p in model.parameters() if p.dim() == 0 or not p.requires_grad}
    for layer in model.tower("speech").layers:
        fully_shard(layer, mesh=mesh, ignored_params=alone)
    fully_shard(model, mesh=mesh, ignored_params=alone)


def save_again(source: str, there: str, here: str) -> None:
    """On each rank: read a checkpoint into a model of other values, and write what was read."""
    torch.distributed.init_process_group("gloo")
    together = Together.of_all()
    zipped = composition(Path(source), seed=together.rank + 7)
    shard(zipped.model)
    read = read_checkpoint(Path(there))
    restore(zipped.model, read, zipped.spec, Path(there))
    save(Path(here), zipped, optimizer_of(zipped.model), together)
    torch.distributed.destroy_process_group()


def fill(source: str) -> None:
    """On each rank: a frozen tower in rows only, which has the logits of the whole one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    spec = make_spec({"text": tower(weights=source, freeze=True)})
    whole, bare = build_model(spec)[0], build_model(spec, bare=["text"])[0]
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in bare.tower("text").layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(bare, mesh=mesh)
    fill_bare(bare.tower("text"), Path(source), "cpu")
    for (name, own), expected in zip(bare.named_parameters(), whole.parameters(), strict=True):
        here = piece(own)
        assert here.rows.shape[0] < expected.shape[0], name
        assert torch.equal(here.rows, here.of(expected)), name
    batch = zippkit.compile(spec).collate([[Segment("text", torch.arange(9))]])
    assert torch.equal(bare(batch)["text"], whole(batch)["text"])
    torch.distributed.destroy_process_group()
