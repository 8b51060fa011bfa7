"""Safetensors in and out: whole files or sharded folders, checked before anything is copied."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zippkit.errors import CheckpointError, ZippkitError
from zippkit.model.pieces import Held, fill_rows, is_split, rows_of
from zippkit.spec.kinds import TOWER_FILE, read_json
from zippkit.system.files import appearing, inside, parse_json

SAME = "same"
"""Key of a file's metadata: names of tensors that are another one of the file, and that one's name, as JSON. One key,
because safetensors writes several in any order, and equal tensors are to make equal files."""


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path}: expected a .safetensors file; pickled checkpoints can run code and are never opened"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is not a mapping)
            same = parse_json((file.metadata() or {}).get(SAME, "{}"))
        return tensors | {name: tensors[other] for name, other in same.items()}
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); was it cut short?") from error


def weight_files(path: Path) -> list[Path]:
    """The files that `read_tensors` reads.

    Raises:
        CheckpointError: nothing there, or a shard missing.
    """
    if not path.is_dir():
        return [path]
    index = path / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = sorted(set(map(str, read_json(index)["weight_map"].values())))
            files = [inside(path, shard, follow=True) for shard in shards]
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index}: not an index of shards ({error})") from error
        missing = [shard for shard, file in zip(shards, files, strict=True) if not file.exists()]
        if missing:
            raise CheckpointError(f"{path}: shards are missing: {', '.join(missing)}")
        return files
    single = path / "model.safetensors"
    if single.exists():
        return [single]
    others = sorted(
        file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".safetensors")
    )
    raise CheckpointError(
        f"{path}: expected model.safetensors or model.safetensors.index.json, found {others or 'neither'}"
    )


def check_hashes(folder: Path) -> None:
    """Compare a folder's weights with the hashes in its ``tower.json``, if there are any: zippkit writes them.

    Raises:
        CheckpointError: names a file that is another one than was written.
    """
    if not (folder / TOWER_FILE).exists():
        return
    try:
        hashes = read_json(folder / TOWER_FILE).get("files")
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(hashes, dict):
        return
    for file in weight_files(folder):
        expected = hashes.get(file.name, "no hash at all")
        if (seen := file_hash(file)) != expected:
            raise CheckpointError(
                f"{file}: SHA-256 is {seen}, {TOWER_FILE} beside it says {expected}; damaged, or another one than was "
                f"written (if it is meant to be this one, remove `files` from {TOWER_FILE})"
            )


def read_tensors(path: Path, *, check: bool = True) -> dict[str, Tensor]:
    """Tensors of a safetensors file, or of a folder's ``model.safetensors`` or sharded index.

    Args:
        path: the file or folder.
        check: compare the files with the hashes in ``tower.json`` (`check_hashes`); not where a manifest did.

    Raises:
        CheckpointError: nothing there, a shard missing, cut short, damaged, or a pickle.
    """
    if check and path.is_dir():
        check_hashes(path)
    return {name: tensor for file in weight_files(path) for name, tensor in _read_file(file).items()}


_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def float_dtypes(path: Path) -> set[torch.dtype]:
    """The floating-point dtypes of the tensors that `read_tensors` would read; from the files' headers alone.

    Raises:
        CheckpointError: as of `read_tensors`.
    """
    found: set[str] = set()
    for file in weight_files(path):
        try:
            with safe_open(file, framework="pt") as tensors:
                found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a whole safetensors file ({error}); was it cut short?") from error
    return {_FLOATS[name] for name in found if name in _FLOATS}


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy ``tensors`` into ``module``; every name and shape must fit. Of what ranks share, each copies its own rows.

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
    dealt = {name for name, value in own.items() if is_split(value)}
    with torch.no_grad():
        for name in dealt:
            fill_rows(own[name], tensors[name])
    module.load_state_dict({n: t for n, t in tensors.items() if n not in dealt}, strict=not dealt, assign=False)


@contextmanager
def filled_in_place(module: nn.Module, name: str) -> Iterator[None]:
    """Check that the code inside fills ``module`` in place.

    Its modules, parameters and buffers must be the same objects after as before, by the same names, since freezing,
    optimizers and adapters hold on to them.

    Args:
        module: the module that is filled.
        name: its name in messages.

    Raises:
        ZippkitError: names what was replaced, added or removed.
    """
    before = _objects(module)
    yield
    after = _objects(module)
    wrong = [key for key in dict.fromkeys([*before, *after]) if before.get(key) is not after.get(key)]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ZippkitError(
            f"{name}: loading weights replaced {', '.join(wrong[:5])}{more}, so that freezing and adapters are lost; "
            f"`load_weights` of {type(module).__name__} must copy values into the parameters that are there "
            "(zippkit.model.weights.load_into does)"
        )


def _objects(module: nn.Module) -> dict[str, object]:
    """Every module, parameter and buffer by its name, under all of its names."""
    found: dict[str, object] = {f"module {name}": each for name, each in module.named_modules(remove_duplicate=False)}
    found |= module.named_parameters(remove_duplicate=False)
    return found | dict(module.named_buffers(remove_duplicate=False))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all; equal tensors make equal files.

    A tensor that goes by several names (tied weights, a projection that sites share) is written once.
    """
    storages: set[int] = set()
    written: dict[str, Tensor] = {}
    names, same = distinct(tensors)
    for name in names:
        tensor = tensors[name]
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage()
        # What only overlaps with another tensor gets memory of its own, and so does a part of a larger one.
        apart = storage.data_ptr() in storages or storage.nbytes() != own.numel() * own.element_size()
        storages.add(storage.data_ptr())
        written[name] = own.clone() if apart else own
    with appearing(path) as new:
        save_file(written, new, {SAME: json.dumps(same)} if same else None)


def distinct(tensors: Mapping[str, Held]) -> tuple[list[str], dict[str, str]]:
    """The names of tensors without those that are another one under a second name; and whose name that is."""
    known: dict[object, str] = {}
    names: list[str] = []
    same: dict[str, str] = {}
    for name, tensor in tensors.items():
        first = known.setdefault(identity(tensor), name) if tensor.numel() else name
        if first == name:
            names.append(name)
        else:
            same[name] = first
    return names, same


def identity(held: Held) -> object:
    """Equal for two tensors, or pieces of them, that are the same numbers in the same memory, while both are alive.

    Where memory has no address (every ``data_ptr()`` is 0 on xla), only a tensor itself is the same.
    """
    tensor = rows_of(held)
    if not _addressed(tensor):
        return tensor.device, id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def module_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state dict, by whose tensors `identity` tells which names are one parameter on every device.

    Where memory has no address, these are copies on the host, one for each parameter and buffer. What ranks share stays
    shared.
    """
    copies: dict[int, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if _addressed(tensor) or tensor.is_meta:
            state[name] = tensor.detach()
        else:
            copies[id(tensor)] = state[name] = copies[id(tensor)] if id(tensor) in copies else tensor.detach().cpu()
    return state


def _addressed(held: Tensor) -> bool:
    tensor = rows_of(held)
    return tensor.data_ptr() != 0 or tensor.numel() == 0


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """SHA-256 of each tensor's bytes, dtype and shape, by name; of what ranks share, that of this one's rows."""
    hashes = {}
    for name, tensor in tensors:
        own = rows_of(tensor.detach())
        flat = own.cpu().contiguous().flatten()
        digest = hashlib.sha256(f"{own.dtype}{tuple(own.shape)}".encode())
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy().data)
        hashes[name] = digest.hexdigest()
    return hashes


def hashes_here(known: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Known hashes of whole tensors; for those that ranks have come to share, of this rank's rows as they are now."""
    return {**known, **fingerprint((name, each) for name, each in tensors.items() if name in known and is_split(each))}


def state_hash(state: Mapping[str, Tensor]) -> str:
    """One SHA-256 for all tensors of a module, their names among it."""
    return hash_of(fingerprint(state.items()))


def hash_of(hashes: Mapping[str, str]) -> str:
    """One SHA-256 for the hashes of all tensors of a module."""
    lines = (f"{name} {digest}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
