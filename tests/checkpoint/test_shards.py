"""Files that several ranks write, rows by rows, and what ranks read of whole files."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import zippkit
from helpers.compositions import make_spec, tower
from helpers.ranks import on_ranks
from helpers.sharded_checkpoint import composition, optimizer_of, save
from zippkit.checkpoint.manifest import read_checkpoint_manifest
from zippkit.checkpoint.shards import lay_out, write_rows
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.errors import CheckpointError
from zippkit.model.pieces import Piece
from zippkit.model.weights import read_tensors, write_tensors

pytestmark = pytest.mark.slow

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.int64,
    torch.bool,
    torch.float64,
    torch.float16,
    torch.uint8,
    torch.int32,
]
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
NAMES = st.text('ab.é"', min_size=1, max_size=4)


def dealt(tensor: Tensor, rank: int, n_ranks: int) -> Piece:
    """The rows of one rank, as torch deals them; what has no rows is the first rank's."""
    if tensor.dim() == 0 or n_ranks == 1:
        return Piece(tensor, tensor.shape, writes=rank == 0)
    chunks = tensor.chunk(n_ranks)
    rows = chunks[rank] if rank < len(chunks) else tensor[:0]
    return Piece(rows, tensor.shape, sum(len(chunk) for chunk in chunks[:rank]))


@given(st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=6), st.integers(1, 4))
def test_ranks_write_the_bytes_of_one_process(shapes: dict, n_ranks: int) -> None:
    tensors = {name: (torch.randn(shape) * 9).to(dtype) for name, (shape, dtype) in shapes.items()}
    tensors |= {f"{name}, too": tensor for name, tensor in list(tensors.items())[:1]}
    with TemporaryDirectory() as folder:
        one, several = Path(folder) / "one.safetensors", Path(folder) / "several.safetensors"
        write_tensors(one, tensors)
        for rank in range(n_ranks):
            mine = {name: dealt(tensor, rank, n_ranks) for name, tensor in tensors.items()}
            if rank == 0:
                lay_out(several, mine)
            write_rows(several, mine)
        assert several.read_bytes() == one.read_bytes()
        assert read_tensors(several).keys() == tensors.keys()


def test_replicas_write_once(tmp_path: Path) -> None:
    here, replica = (torch.full((2, 3), value) for value in (1.0, 2.0))
    lay_out(tmp_path / "x.safetensors", {"a": Piece(here, here.shape)})
    write_rows(tmp_path / "x.safetensors", {"a": Piece(here, here.shape)})
    write_rows(tmp_path / "x.safetensors", {"a": Piece(replica, here.shape, writes=False)})
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")["a"], here)


def test_a_disk_of_ones_own_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="on a file system that all of them share"):
        write_rows(tmp_path / "x.safetensors", {})


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_ranks_read_and_write_the_checkpoint_of_one_process(tmp_path: Path, n_ranks: int) -> None:
    write_tower(tmp_path / "text", zippkit.compile(make_spec({"text": tower()})).model.tower("text"), "decoder")
    zipped = composition(tmp_path / "text", seed=1)
    save(tmp_path / "one", zipped, optimizer_of(zipped.model))
    on_ranks(
        n_ranks, "helpers.sharded_checkpoint.save_again", tmp_path / "text", tmp_path / "one", tmp_path / "several"
    )
    one, several = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "one", tmp_path / "several")
    )
    assert one == several, "to the byte"
    assert not list(tmp_path.glob(".*")), "nothing is left half written"
    assert read_checkpoint_manifest(tmp_path / "several")["towers"]["sound"] == {"same_as": "speech"}


def test_each_rank_materialises_only_its_rows_of_a_tower(tmp_path: Path) -> None:
    write_tower(tmp_path / "text", zippkit.compile(make_spec({"text": tower()})).model.tower("text"), "decoder")
    on_ranks(2, "helpers.sharded_checkpoint.fill", tmp_path / "text")
