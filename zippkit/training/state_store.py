"""A folder of kept states, a file for each segment or document, by hashes of all that they depend on.

::

    <what>/about.json             what is kept here, in words: tower, weights, code, depths, precision
    <what>/<ab>/<key>.safetensors  states (T, D) by depth, and the SHA-256 of them

``what`` is the hash of what ``about.json`` says, and ``key`` that of the tower's inputs, so that no entry is ever out
of date: what has changed has another name. Entries appear whole or not at all, and are equal whoever writes them, so
that several processes may share a folder, and any part of it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zippkit.errors import WriteError
from zippkit.system.files import appearing, write_json

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

States = dict[int, Tensor]
"""(T, D) by depth."""


def tell(*lines: str) -> None:
    """Write lines about the cache to standard error."""
    for line in lines:
        print(f"source cache: {line}", file=sys.stderr)


def digest(*parts: bytes | str) -> str:
    """SHA-256 of some parts, told apart by their lengths."""
    found = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        found.update(len(content).to_bytes(8, "little"))
        found.update(content)
    return found.hexdigest()


@dataclass
class StateStore:
    """Reads and writes entries of one folder."""

    folder: Path
    dtype: torch.dtype
    """In which new entries are written."""
    largest_error: float = field(default=0.0, init=False)
    """Between states and what was written of them, over the largest state of the same entry."""
    full: bool = field(default=False, init=False)
    """An entry could not be written; no other is tried."""
    damaged: set[Path] = field(default_factory=set, init=False)
    """Entries that were not what was written; each is told of once."""

    def open(self, about: Mapping[str, Any]) -> str:
        """Make the folder of everything that is alike in ``about``, and return its name."""
        what = digest(json.dumps(about, sort_keys=True))
        if not (self.folder / what / "about.json").exists():
            (self.folder / what).mkdir(parents=True, exist_ok=True)
            write_json(self.folder / what / "about.json", about)
        return what

    def has(self, what: str, key: str) -> bool:
        """Whether an entry is there, sound or not."""
        return self._file(what, key).exists()

    def read(self, what: str, key: str) -> States | None:
        """An entry's states in float32; None where there is none.

        One that is not what was written is told of and treated as if it were not there.
        """
        file = self._file(what, key)
        try:
            with safe_open(file, "pt") as found:
                states = {int(depth): found.get_tensor(depth) for depth in found.keys()}  # noqa: SIM118
                told = found.metadata() or {}
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError) as error:
            self._damaged(file, str(error))
            return None
        if told.get("sha256") != _content(what, key, states):
            self._damaged(file, "its SHA-256 is not that of its content")
            return None
        return {depth: each.float() for depth, each in states.items()}

    def write(self, what: str, key: str, states: States) -> States:
        """Write an entry, and return it as it will be read; a disk that is full is told of once."""
        kept = {depth: each.cpu().to(self.dtype).contiguous() for depth, each in sorted(states.items())}
        read = {depth: each.float() for depth, each in kept.items()}
        self._note_error(states, read)
        if not self.full:
            file = self._file(what, key)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with appearing(file) as new:
                    told = {"sha256": _content(what, key, kept)}
                    save_file({str(depth): each for depth, each in kept.items()}, new, told)
            except (WriteError, OSError) as error:
                self.full = True
                tell(f"{error}; states are computed from here on, and not kept")
        return read

    def room(self) -> int:
        """Bytes that are free where the folder is, or will be."""
        place = self.folder.absolute()
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    def _file(self, what: str, key: str) -> Path:
        return self.folder / what / key[:2] / f"{key}.safetensors"

    def _note_error(self, states: States, read: States) -> None:
        if self.dtype != torch.float32:
            for depth, each in states.items():
                off = (read[depth] - each.cpu()).abs().max() / each.abs().max().clamp(min=1e-30).cpu()
                self.largest_error = max(self.largest_error, float(off))

    def _damaged(self, file: Path, why: str) -> None:
        if file not in self.damaged:
            self.damaged.add(file)
            tell(f"{file}: damaged ({why}); its states are computed anew")


def _content(what: str, key: str, states: Mapping[int, Tensor]) -> str:
    """SHA-256 of an entry: whose it is, and each tensor with its depth, dtype and shape."""
    found = hashlib.sha256(f"{what} {key}".encode())
    for depth, each in sorted(states.items()):
        found.update(f"{depth} {each.dtype} {tuple(each.shape)}".encode())
        found.update(each.contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()
