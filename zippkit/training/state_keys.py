"""What the states of a frozen tower depend on besides its inputs, told by hashes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zippkit.model.weights import fingerprint
from zippkit.model.zipped_model import ZippedModel
from zippkit.training.state_store import digest

FORMAT = 1
"""Of the entries, and of how a composition makes states; another number, and none of the older entries is read."""


def about_tower(
    model: ZippedModel, tower: str, depths: tuple[int, ...], tokenizers: Mapping[str, str | None]
) -> dict[str, Any]:
    """Everything that decides a frozen tower's states of given inputs, as plain data.

    Args:
        model: whose tower it is.
        tower: its name, which counts for nothing: towers of other names may share their states.
        depths: after how many layers its states are kept.
        tokenizers: fingerprints of the tokenizers of the modalities that it reads.
    """
    module, owner = model.tower(tower), model.owner(tower)
    around = [group[name] for group in model.groups.values() for name in _around(group, tower, owner)]
    parts: list[nn.Module] = [module, *around]
    return {
        "format": FORMAT,
        "kind": _name(type(module)),
        # Where its weights were is nothing that states depend on.
        "config": module.config.model_dump(mode="json", exclude={"path"}),
        "weights": [_hash(part) for part in parts],
        "around": [_name(type(part)) for part in around],
        "code": digest(*(_source(cls) for cls in sorted(set(_classes(parts)), key=_name))),
        "libraries": _libraries(parts),
        "tokenizers": dict(sorted(tokenizers.items())),
        "depths": list(depths),
        "matmul": torch.get_float32_matmul_precision(),
    }


def _around(group: Any, tower: str, owner: str) -> list[str]:
    """The names in a group of what stands around a tower."""
    return [name for name in dict.fromkeys((tower, owner)) if name in group] if group.around(tower, owner) else []


def _name(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _hash(module: nn.Module) -> str:
    """Of all parameters and buffers, those among them that no checkpoint holds."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return digest(*(f"{name} {each}" for name, each in sorted(fingerprint(tensors).items())))


def _classes(parts: list[nn.Module]) -> Iterator[type]:
    """The classes that the parts are made of, but for those of torch and of Python itself."""
    for part in parts:
        for cls in type(part).__mro__:
            if cls.__module__.partition(".")[0] not in ("torch", "builtins", "abc", "typing"):
                yield cls


def _source(cls: type) -> str:
    """Hash of the source of a class: all files beside its own, where it stands in a package."""
    module = sys.modules[cls.__module__]
    file = getattr(module, "__file__", None)
    if file is None:
        return ""
    files = sorted(Path(file).parent.glob("*.py")) if module.__package__ else [Path(file)]
    return digest(*(part for each in files for part in (each.name, each.read_bytes())))


def _libraries(parts: list[nn.Module]) -> dict[str, str]:
    """Versions of the packages that the modules inside come from, such as transformers."""
    names = {type(module).__module__.partition(".")[0] for part in parts for module in part.modules()}
    found = {"torch": str(torch.__version__)}
    for name in sorted(names - {"torch"}):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
