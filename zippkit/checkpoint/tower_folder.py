"""One tower by itself, as a folder that a spec's ``weights`` can name, and that transformers reads where it can."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path

import torch

from zippkit.checkpoint.references import copy_companions
from zippkit.checkpoint.shards import write_files
from zippkit.checkpoint.together import ALONE, Together
from zippkit.model.pieces import Held
from zippkit.model.tower import Tower
from zippkit.model.weights import file_hash, weight_files
from zippkit.spec import registry
from zippkit.spec.kinds import TOWER_FILE, TowerConfig
from zippkit.system.files import write_json


def write_tower(folder: Path, tower: Tower, kind: str, source: Path | None = None) -> None:
    """Write one tower by itself, as a folder that a spec's ``weights`` can name.

    It holds ``model.safetensors``, ``tower.json`` and, where transformers has such an architecture, ``config.json``.

    Args:
        folder: where to write.
        tower: the tower.
        kind: its kind.
        source: where its weights came from; its tokenizer and the like are copied along.
    """
    write_tower_state(folder, tower.state_dict(), kind, tower.config, source)


def write_tower_state(
    folder: Path,
    state: Mapping[str, Held],
    kind: str,
    config: TowerConfig,
    source: Path | None = None,
    together: Together = ALONE,
) -> None:
    """Write a tower's folder, as `write_tower` does, from its tensors or, with other ranks, pieces of them."""
    together.first(lambda: folder.mkdir(parents=True, exist_ok=True))
    write_files(folder, {"model.safetensors": state}, together)
    dtypes = [tensor.dtype for tensor in state.values()]
    together.first(lambda: describe_tower(folder, dtypes, kind, config, source))


def describe_tower(
    folder: Path, dtypes: Iterable[torch.dtype], kind: str, config: TowerConfig, source: Path | None = None
) -> None:
    """Write what stands beside a tower's weights in its folder, once these are there; ``dtypes`` are theirs."""
    if source is not None:
        copy_companions(source, folder)
    write_hugging_face(folder, kind, config, dtypes)
    # Last, because whoever finds it takes the folder for whole.
    write_tower_json(folder, kind, config)


def write_tower_json(folder: Path, kind: str, config: TowerConfig) -> None:
    """Say what kind of tower a folder holds, with which config, and by which hashes its weights are known."""
    about = {"kind": kind, "config": config.model_dump(mode="json", exclude={"path"})}
    hashes = {file.name: file_hash(file) for file in weight_files(folder)}
    write_json(folder / TOWER_FILE, {**about, "files": hashes})


def write_hugging_face(folder: Path, kind: str, config: TowerConfig, dtypes: Iterable[torch.dtype]) -> None:
    """Write the ``config.json`` with which transformers reads a tower's weights; none where it has no such model.

    Args:
        folder: where the weights are.
        kind: the tower's kind.
        config: the tower's config.
        dtypes: of the weights; transformers loads all of them in the widest.
    """
    cls: type[Tower] = registry.implementation(registry.TOWERS, kind)
    hf_config = cls.hugging_face(config)
    floats = {dtype for dtype in dtypes if dtype.is_floating_point}
    if hf_config is not None and floats:
        widest = reduce(torch.promote_types, floats)
        write_json(folder / "config.json", {**hf_config, "dtype": str(widest).removeprefix("torch.")})
