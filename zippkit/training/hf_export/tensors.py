"""The tensors of an exported model, under the names that they have there."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from zippkit.composition import Composition
from zippkit.training.hf_export.description import adapted_maps, exported_towers


def exported_tensors(zipped: Composition, but: Collection[str] = ()) -> dict[str, Tensor]:
    """Every tensor of the model; what several parts share stands there once for each.

    Args:
        zipped: the composition.
        but: towers whose own weights are left out.
    """
    model, found = zipped.model, dict[str, Tensor]()
    for name, tower in exported_towers(zipped).items():
        begin = f"towers.{name}.{tower.prefix}"
        own = {**model.tower(name).state_dict(), **tower.tensors}
        found |= {} if name in but else {f"{begin}{key}": tensor for key, tensor in own.items()}
        for path, adapted in adapted_maps(zipped, name).items():
            found[f"{begin}{path}.down"], found[f"{begin}{path}.up"] = adapted.adapter.down, adapted.adapter.up
    groups = model.groups
    for name, projection in groups["input_projections"].named_children():
        inner = "mlp." if isinstance(projection, nn.Sequential) else ""
        found |= {f"input_projections.{name}.{inner}{key}": each for key, each in projection.state_dict().items()}
    for group in ("vocabularies", "links"):
        found |= {f"{group}.{key}": tensor for key, tensor in groups[group].state_dict().items()}
    # A tensor that several names share is written for each: safetensors refuses views of one storage.
    return {key: tensor.detach().contiguous().clone() for key, tensor in found.items()}
