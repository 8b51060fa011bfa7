"""One safetensors file that several ranks write: the first lays out its header, each puts its rows where they belong.

So a checkpoint is the same, byte by byte, by however many ranks it is written, and none ever holds what another does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from zippkit.checkpoint.together import ALONE, Together
from zippkit.errors import CheckpointError
from zippkit.model.pieces import Held, Piece, pieces
from zippkit.model.weights import SAME, distinct, write_tensors

_WORDS = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""Of dtypes in a header, in the order in which safetensors writes them, the last ones first."""
_ORDER = list(_WORDS)


class _Place(NamedTuple):
    """Where a tensor stands in a file."""

    begin: int
    n_bytes: int


T = TypeVar("T")
Files = Mapping[str, Mapping[str, T]]
"""Tensors by the file that holds them."""


def write_files(folder: Path, files: Files[Held], together: Together = ALONE) -> None:
    """Write files of tensors: one process each as a whole, several ranks each its pieces."""
    if together.size == 1:
        for name, tensors in files.items():
            write_tensors(folder / name, cast("Mapping[str, Tensor]", tensors))
        return
    mine = {name: pieces(tensors, together.rank) for name, tensors in files.items()}
    together.first(lambda: _for_each(lay_out, folder, mine))
    together.each(lambda: _for_each(write_rows, folder, mine))


def _for_each(do: Callable[[Path, Mapping[str, Piece]], None], folder: Path, files: Files[Piece]) -> None:
    for name, tensors in files.items():
        do(folder / name, tensors)


def lay_out(path: Path, tensors: Mapping[str, Piece]) -> None:
    """Write the header of a file that holds whole tensors, and make room for them.

    Raises:
        CheckpointError: a dtype that it has no word for.
    """
    written, same = distinct(tensors)
    header: dict[str, Any] = {"__metadata__": {SAME: json.dumps(same)}} if same else {}
    end = 0
    for name in sorted(written, key=lambda name: (-_order(name, tensors[name]), name)):
        piece = tensors[name]
        begin, end = end, end + prod(piece.shape) * piece.dtype.itemsize
        header[name] = {"dtype": _WORDS[piece.dtype], "shape": list(piece.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def _order(name: str, piece: Piece) -> int:
    if piece.dtype not in _WORDS:
        raise CheckpointError(f"{name}: a tensor of {piece.dtype} cannot be written by several ranks")
    return _ORDER.index(piece.dtype)


def write_rows(path: Path, tensors: Mapping[str, Piece]) -> None:
    """Put this rank's rows of every tensor into a file that was laid out, and bring them to the disk.

    Raises:
        CheckpointError: the file is not there, because ranks do not share their disks.
    """
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: is not there on this rank; ranks write one folder together, so --out must be on a file system "
            "that all of them share"
        ) from error
    try:
        for name, place in _places(file):
            piece = tensors[name]
            if piece.writes and piece.rows.numel():
                _write(file, piece.rows, place.begin + piece.offset * piece.dtype.itemsize)
        os.fsync(file)
    finally:
        os.close(file)


def _places(file: int) -> Iterator[tuple[str, _Place]]:
    n_header = int.from_bytes(os.pread(file, 8, 0), "little")
    for name, entry in json.loads(os.pread(file, n_header, 8)).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, _Place(8 + n_header + begin, end - begin)


def _write(file: int, rows: Tensor, at: int) -> None:
    content = rows.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    while content:
        n_written = os.pwrite(file, content, at)
        content, at = content[n_written:], at + n_written
