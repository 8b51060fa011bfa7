"""Certificate C8: frozen towers leave a composition as they came, and whoever makes them differ is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import zippkit
from helpers.compositions import link, make, make_spec, randomise, tower
from helpers.tiny_runs import copied, finished_run
from zippkit.checkpoint.tower_folder import write_tower
from zippkit.composition import Composition, load
from zippkit.evaluation.certificates import Certificate, verify
from zippkit_towers.decoder.tower import Decoder

pytestmark = pytest.mark.slow

LINKS = [link("speech", "text", every=1)]


def c8(made: Composition) -> Certificate:
    (certificate,) = verify(made, only=["C8"]).certificates
    return certificate


@pytest.fixture
def source(tmp_path: Path) -> Path:
    module = make({"text": tower(2, 8)}).model.tower("text")
    randomise(module)
    write_tower(tmp_path / "source", module, "decoder")
    return tmp_path / "source"


def zipped(source: Path | None, **more: Any) -> Composition:
    text = tower(2, 8, **({"weights": str(source)} if source else {}), **{"freeze": True, **more})
    return zippkit.compile(make_spec({"text": text, "speech": tower(1, 8, 30)}, LINKS))


def test_it_holds_for_a_tower_with_a_source(source: Path) -> None:
    found = c8(zipped(source))
    assert found.passed, found.detail
    assert found.detail == "text byte for byte as in the source"


def test_it_holds_for_a_tower_without_a_source() -> None:
    found = c8(zipped(None))
    assert found.passed, found.detail
    assert found.detail == "text without a source, bit for bit, and in the same bytes twice"


def test_it_holds_where_nothing_is_frozen() -> None:
    assert c8(zipped(None, freeze=False)).detail == "the spec freezes no tower as a whole"


def test_it_holds_for_a_run_that_has_been_trained() -> None:
    found = c8(load(finished_run()))
    assert (found.passed, found.detail) == (True, "text byte for byte as in the source")


def test_it_says_which_tower_has_moved(source: Path) -> None:
    made = zipped(source)
    with torch.no_grad():
        made.model.get_parameter("towers.text.norm.weight")[3] += 1e-6
    found = c8(made)
    assert not found.passed
    assert found.detail == f"text is frozen, but differs from its source {source}"


def test_it_says_that_a_source_is_gone(source: Path) -> None:
    made = zipped(source)
    source.rename(source.with_name("elsewhere"))
    found = c8(made)
    assert not found.passed
    assert found.detail == f"text: its source {source} is gone or cannot be read"


def test_it_says_that_another_tower_stands_there(tmp_path: Path) -> None:
    run = copied(finished_run(), tmp_path / "copy")
    made = load(run)
    write_tower(run / "towers" / "text", zippkit.compile(made.spec).model.tower("text"), "decoder")
    found = c8(made)
    assert not found.passed
    assert "text is frozen, but differs from its source" in found.detail


def test_it_finds_equal_numbers_in_other_bytes(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(self: Composition, folder: Path, *, copy_towers: bool) -> None:
        original(self, folder, copy_towers=copy_towers)
        file = folder / "towers" / "text" / "model.safetensors"
        save_file(load_file(file), file, {"written": "otherwise"})

    original = Composition.save
    monkeypatch.setattr(Composition, "save", save)
    found = c8(zipped(source))
    assert not found.passed
    assert found.detail == f"text: what was saved differs in bytes from {source}"


def test_it_finds_a_tower_that_saves_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved twice it is never the same."""
    original = Decoder.state_dict
    counter = iter(range(100))

    def restless(self: Decoder, *arguments: Any, **more: Any) -> dict[str, Tensor]:
        state: dict[str, Tensor] = original(self, *arguments, **more)
        prefix = str(more.get("prefix", ""))
        state[f"{prefix}norm.weight"] = state[f"{prefix}norm.weight"] + next(counter)
        return state

    monkeypatch.setattr(Decoder, "state_dict", restless)
    found = c8(zipped(None))
    assert not found.passed
    assert "text: what was saved differs" in found.detail


def test_it_leaves_everything_as_it_is(source: Path) -> None:
    made = zipped(source)
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    files = {path: path.stat().st_mtime_ns for path in source.iterdir()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    c8(made)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.model.state_dict().items())
    assert {path: path.stat().st_mtime_ns for path in source.iterdir()} == files
