"""Safetensors in and out: whole files or sharded folders, checked before anything is copied."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zippkit.config import read_json
from zippkit.errors import CheckpointError


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: expected a .safetensors file; pickled checkpoints can run code and are never opened"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); was it cut short?") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a folder's ``model.safetensors`` or sharded index.

    Raises:
        CheckpointError: nothing there, a shard missing, cut short, or a pickle.
    """
    if not path.is_dir():
        return _read_file(path)
    index = path / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = sorted(set(map(str, read_json(index)["weight_map"].values())))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index}: not an index of shards ({error})") from error
        missing = [shard for shard in shards if not (path / shard).exists()]
        if missing:
            raise CheckpointError(f"{path}: shards are missing: {', '.join(missing)}")
        return {name: tensor for shard in shards for name, tensor in _read_file(path / shard).items()}
    single = path / "model.safetensors"
    if single.exists():
        return _read_file(single)
    others = sorted(
        file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".safetensors")
    )
    raise CheckpointError(
        f"{path}: expected model.safetensors or model.safetensors.index.json, found {others or 'neither'}"
    )


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy ``tensors`` into ``module``; every name and shape must fit.

    Raises:
        CheckpointError: names what is missing, unknown or of another shape; nothing has been copied then.
    """
    own = module.state_dict()
    wrong = [f"missing {name}" for name in own if name not in tensors]
    wrong += [f"unknown {name}" for name in tensors if name not in own]
    wrong += [
        f"{name} has shape {list(tensors[name].shape)}, expected {list(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"{source}: does not fit {type(module).__name__}: {'; '.join(wrong[:5])}{more}")
    module.load_state_dict(dict(tensors), assign=False)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
    temporary.replace(path)


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """SHA-256 of each tensor's bytes, dtype and shape, by name."""
    hashes = {}
    for name, tensor in tensors:
        flat = tensor.detach().cpu().contiguous().flatten()
        content = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(content)
        hashes[name] = digest.hexdigest()
    return hashes
