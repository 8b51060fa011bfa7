"""Safetensors in and out: what is refused, that nothing is half copied, and hashes that notice one bit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zippkit.errors import CheckpointError
from zippkit.model.weights import fingerprint, identity, load_into, module_state, read_tensors, write_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "model.safetensors", TENSORS)
    return tmp_path / "model.safetensors"


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    return str(caught.value).replace(str(path), "PATH")


@pytest.mark.parametrize("of_folder", [True, False])
def test_around(file: Path, of_folder: bool) -> None:
    read = read_tensors(file.parent if of_folder else file)
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert [path.name for path in file.parent.iterdir()] == ["model.safetensors"], "no temporary file is left"


def test_what_is_not_contiguous_or_needs_a_gradient_is_written_too(file: Path) -> None:
    write_tensors(file, {"a": TENSORS["a"].T, "b": torch.ones(2, requires_grad=True)})
    assert torch.equal(read_tensors(file)["a"], TENSORS["a"].T)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_cut_short(file: Path, share: float) -> None:
    raw = file.read_bytes()
    file.write_bytes(raw[: int(len(raw) * share)])
    told = refusal(file)
    assert told.startswith("PATH: not a whole safetensors file (")
    assert told.endswith("; was it cut short?")


@settings(max_examples=100)
@given(raw=st.binary(max_size=100))
def test_whatever_is_in_the_file(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(raw)
    try:
        assert read_tensors(path) == {}
    except CheckpointError as error:
        assert "not a whole safetensors file" in str(error)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    assert "pickled checkpoints can run code and are never opened" in refusal(tmp_path / name)
    assert refusal(tmp_path) == f"PATH: expected model.safetensors or model.safetensors.index.json, found ['{name}']"
    assert not (tmp_path / "exploded").exists()


def test_nothing_there(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("found neither")
    assert "No such file" in refusal(tmp_path / "model.safetensors")


def shard(folder: Path, index: object) -> Path:
    write_tensors(folder / "one.safetensors", {"a": TENSORS["a"]})
    write_tensors(folder / "two.safetensors", {"b": TENSORS["b"]})
    (folder / "model.safetensors.index.json").write_text(index if isinstance(index, str) else json.dumps(index))
    return folder


WHOLE = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}


def test_shards(tmp_path: Path) -> None:
    assert read_tensors(shard(tmp_path, WHOLE)).keys() == {"a", "b"}
    (tmp_path / "two.safetensors").write_bytes(b"")
    assert "two.safetensors: not a whole safetensors file" in refusal(tmp_path)
    (tmp_path / "two.safetensors").unlink()
    assert refusal(tmp_path) == "PATH: shards are missing: two.safetensors"


@pytest.mark.parametrize("index", ["{", "[]", "3", "{}", {"weight_map": 3}, {"weight_map": ["a"]}, "[" * 100_000])
def test_an_index_that_is_none(tmp_path: Path, index: object) -> None:
    assert "model.safetensors.index.json: not an index of shards" in refusal(shard(tmp_path, index))


@pytest.mark.parametrize("name", [3, None, {"a": 1}, "one.bin", "one\0.safetensors"])
def test_an_index_of_things_that_are_no_files(tmp_path: Path, name: object) -> None:
    assert "PATH" in refusal(shard(tmp_path, {"weight_map": {"a": name}}))


def test_everything_that_does_not_fit_is_told_and_nothing_is_copied() -> None:
    module = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_into(module, {"weight": torch.ones(2, 4), "bais": torch.ones(2)}, "FILE")
    assert str(caught.value) == (
        "FILE: does not fit Linear: missing bias; unknown bais; weight has shape [2, 4], expected [2, 3]"
    )
    with pytest.raises(CheckpointError, match=r"unknown x0; .* unknown x4 and 1 more"):
        load_into(module, {f"x{i}": torch.ones(1) for i in range(6)} | before, "FILE")
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_loading_copies_and_keeps_the_module_s_type() -> None:
    module = nn.Linear(3, 2)
    weight = torch.ones(2, 3, dtype=torch.bfloat16)
    load_into(module, {"weight": weight, "bias": torch.zeros(2)}, "FILE")
    assert module.weight.dtype == torch.float32
    assert module.weight.eq(1).all()
    assert module.weight.requires_grad


def test_a_fingerprint_notices_one_bit_one_type_and_one_shape() -> None:
    def prints(tensor: torch.Tensor) -> str:
        return fingerprint([("a", tensor)])["a"]

    base = torch.zeros(2, 3)
    assert prints(base) == prints(base.clone().T.contiguous().T)
    others = [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32), -base, torch.zeros(6), torch.zeros(0, 3)]
    assert len({prints(base), *map(prints, others)}) == 6
    for dtype in (torch.bfloat16, torch.bool, torch.int64, torch.float64):
        assert prints(torch.ones((), dtype=dtype)) != prints(torch.zeros((), dtype=dtype))


class Elsewhere(torch.Tensor):
    """In memory without addresses, as xla's tensors are."""

    def data_ptr(self) -> int:
        return 0

    def cpu(self, *_: object, **__: object) -> torch.Tensor:
        return self.as_subclass(torch.Tensor).clone()


def elsewhere(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).as_subclass(Elsewhere)


def test_tensors_without_an_address_are_each_written(tmp_path: Path) -> None:
    tensors = {"one": elsewhere(1, 1), "two": elsewhere(2, 2)}
    write_tensors(tmp_path / "a.safetensors", tensors | {"again": tensors["one"]})
    read = read_tensors(tmp_path / "a.safetensors")
    assert {name: tensor.tolist() for name, tensor in read.items()} == {"one": [1, 1], "two": [2, 2], "again": [1, 1]}
    assert identity(tensors["one"]) != identity(tensors["two"])


def test_a_state_without_addresses_keeps_what_is_tied() -> None:
    module = nn.ModuleDict({name: nn.Linear(2, 1) for name in "abc"})
    for i, each in enumerate(module.values()):
        each.register_parameter("weight", nn.Parameter(elsewhere(i, i)))
    module["c"].weight = module["a"].weight
    state = module_state(module)
    assert {name: state[f"{name}.weight"].tolist() for name in "abc"} == {"a": [0, 0], "b": [1, 1], "c": [0, 0]}
    assert identity(state["a.weight"]) == identity(state["c.weight"]) != identity(state["b.weight"])
    assert state.keys() == module.state_dict().keys()


def test_a_state_is_the_module_s_own_memory() -> None:
    module = nn.Linear(2, 2)
    state = module_state(module)
    assert {name: identity(tensor) for name, tensor in state.items()} == {
        name: identity(tensor) for name, tensor in module.state_dict().items()
    }
    assert not any(tensor.requires_grad for tensor in state.values())
