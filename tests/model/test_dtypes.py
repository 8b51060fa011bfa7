"""Weights in the dtype of their file; float64 models that are float64 throughout; autocast that leaves states wide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import zippkit
from helpers.compositions import link, make, make_spec, randomise, tower
from helpers.tiny_encoders import saved
from zippkit.batch.batch import Segment, TowerBatch
from zippkit.checkpoint.manifest import read_checkpoint_manifest
from zippkit.composition import Composition
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.evaluation.certificates import verify
from zippkit.loading import check_spec
from zippkit.model.dtypes import concrete
from zippkit.model.layers import rotary_angles
from zippkit.model.new_tower import new_tower
from zippkit.model.run_tower import tower_logits
from zippkit.model.weights import read_tensors, write_tensors
from zippkit.report.sizes import sizes
from zippkit.training.export import export_tower
from zippkit_towers.decoder.config import DecoderConfig
from zippkit_towers.decoder.tower import Decoder

pytestmark = pytest.mark.slow

LLAMA = {
    "model_type": "llama",
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Widths(TorchDispatchMode):
    """Every floating-point dtype that an operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {each.dtype for each in tree_leaves(out) if isinstance(each, Tensor) and each.is_floating_point()}
        return out


def rows() -> list[list[Segment]]:
    return [[Segment("speech", [1, 2, 3]), Segment("text", [4, 5])], [Segment("text", [6])]]


def test_a_float64_model_is_float64_throughout() -> None:
    """Loss, contrastive loss, what comes next, and rotary angles of towers and links among it."""
    more = {"input_projection": {"residual": False}}
    links = [link("speech", "text", every=1), link("text", "speech", every=1)]
    spec = make_spec({"text": tower(1, 8, **more), "speech": tower(1, 8, 30, **more)}, links)
    contrast = {"from": "speech", "into": "text"}
    made = zippkit.compile(
        spec.model_copy(update={"next": {}, "contrastive": [contrast]}).model_validate(
            spec.model_dump(by_alias=True, exclude_none=True) | {"next": {}, "contrastive": [contrast]}
        )
    )
    made.model.double()
    batch = made.collate(rows())
    with Widths() as widths:
        losses = made.loss(made.model(batch), batch)
        losses["total"].backward()  # type: ignore[no-untyped-call]
    assert {"text", "speech", "next", "speech_text_contrast"} <= losses.keys()
    assert widths.seen == {torch.float64}


def test_angles_of_narrow_states_are_float32_to_the_last_bit() -> None:
    places = torch.arange(600)[None]
    wide, narrow = (rotary_angles(places, 8, 10_000.0, dtype) for dtype in (torch.float32, torch.bfloat16))
    frequencies = 10_000.0 ** -(torch.arange(0, 8, 2) / 8)
    assert torch.equal(wide[0][0, 0, :, :4], (places[0, :, None].float() * frequencies).cos())
    assert all(torch.equal(a, b) for a, b in zip(wide, narrow, strict=True))


@pytest.mark.parametrize("residual", [True, False])
def test_autocast_leaves_states_wide(residual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(
        {"text": tower(2, 8, input_projection={"residual": residual}), "speech": tower(1, 8, 30)},
        [link("speech", "text", every=1)],
    )
    seen: list[torch.dtype] = []
    layer = type(made.model.tower("text")).layer

    def watched(self: Any, index: int, hidden: Tensor, context: Any) -> Tensor:
        seen.append(hidden.dtype)
        return layer(self, index, hidden, context)

    monkeypatch.setattr(type(made.model.tower("text")), "layer", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made.model(made.collate(rows()))
    assert set(seen) == {torch.float32}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in bfloat16, as `save_pretrained` writes it."""
    path = tmp_path_factory.mktemp("llama") / "hub"
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**LLAMA))
    randomise(model)
    model.to(torch.bfloat16).save_pretrained(path)
    return path


def text(hub: Path, **more: Any) -> dict[str, Any]:
    return {"kind": "hf_causal_lm", "weights": str(hub), "freeze": True, "dtype": "auto", **more}


def zipped(source: dict[str, Any], **more: Any) -> Composition:
    """Links both ways, awake, between a frozen tower and a trained one."""
    links = [link("speech", "text", every=1), link("text", "speech", every=1)]
    made = zippkit.compile(make_spec({"text": source, "speech": tower(2, 8, 30, **more)}, links))
    randomise(made.model.links)
    return made


def own(made: Composition, name: str = "text") -> set[torch.dtype]:
    return {parameter.dtype for parameter in made.model.tower(name).parameters()}


@torch.no_grad()
def test_a_file_of_bf16_stays_in_bf16(hub: Path) -> None:
    made = zipped(text(hub))
    assert own(made) == {torch.bfloat16}
    assert {p.dtype for p in made.model.links.parameters()} == own(made, "speech") == {torch.float32}
    state = made.model.tower("text").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in read_tensors(hub).items())
    model = transformers.AutoModelForCausalLM.from_pretrained(hub, dtype=torch.bfloat16).eval()
    tokens = torch.randint(20, (2, 300), generator=torch.Generator().manual_seed(0))
    found = tower_logits(made.model.tower("text"), TowerBatch.alone(tokens))
    assert found.dtype == torch.float32
    assert torch.equal(found, model(tokens).logits.float()), "past position 256 too"


@pytest.mark.parametrize(
    ("dtype", "is_held_in"), [(None, torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_what_the_spec_says_is_held(hub: Path, dtype: str | None, is_held_in: torch.dtype) -> None:
    said = text(hub) | {"dtype": dtype}
    assert own(zipped({key: value for key, value in said.items() if value is not None})) == {is_held_in}


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, None], ids=str)
def test_auto_never_rounds(tmp_path: Path, stored: torch.dtype | None) -> None:
    """None: a file of several dtypes."""
    tensors = make({"text": tower(2, 8)}).model.tower("text").state_dict()
    kept = {name: t.to(stored or (torch.bfloat16 if "mlp" in name else torch.float32)) for name, t in tensors.items()}
    write_tensors(tmp_path / "text.safetensors", kept)
    made = zipped(tower(2, 8, weights=str(tmp_path / "text.safetensors"), freeze=True, dtype="auto"))
    state = made.model.tower("text").state_dict()
    assert own(made) == {torch.float32}
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in kept.items())
    assert made.spec.towers["text"].dtype == "fp32"


LORA = {"lora": {"rank": 2, "pattern": "model.layers.*.self_attn.*_proj.weight"}}


@pytest.mark.parametrize("more", [{}, LORA], ids=["frozen", "LoRA"])
def test_every_certificate_holds(hub: Path, more: dict[str, Any]) -> None:
    made = zipped(text(hub, **more), input_projection={})
    randomise(made.model.adapters)
    report = verify(made)
    assert report.passed, str(report)
    (c4,) = [each for each in report.certificates if each.name == "C4"]
    assert "with text in bfloat16 within " in c4.detail


def test_certificates_hold_for_decoders_that_share_attention(tmp_path: Path) -> None:
    make({"text": tower(2, 8)}).save(tmp_path / "model")
    source = tmp_path / "model" / "towers" / "text"
    shared = {"kind": "joint_attention", "from": "text", "into": "speech", "every": 1}
    towers = {"text": tower(2, 8, weights=str(source), freeze=True, dtype="bf16"), "speech": tower(2, 8, 30)}
    report = verify(zippkit.compile(make_spec(towers, [shared])))
    assert report.passed, str(report)


@pytest.mark.parametrize("name", ["whisper", "wav2vec2", "vit", "clip"])
def test_certificates_hold_for_encoders(tmp_path: Path, name: str) -> None:
    source = {"kind": "hf_encoder", "weights": str(saved(name, tmp_path)), "freeze": True, "dtype": "bf16"}
    links = [link("sound", "text", every=1), {"kind": "prefix", "name": "more", "from": "sound", "into": "text"}]
    made = zippkit.compile(make_spec({"sound": source, "text": tower(2, 8)}, links))
    assert torch.bfloat16 in own(made, "sound")
    report = verify(made)
    assert report.passed, str(report)


def test_a_wrong_cache_in_bf16_is_noticed(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by float64 alone: by what is run."""
    made = zipped(text(hub))
    start = type(made.model.tower("text")).start

    def wrong(self: Any, inputs: TowerBatch, mask: Tensor | None, cache: Any = None) -> Any:
        hidden, context = start(self, inputs, mask, cache)
        return (-hidden if cache is not None and hidden.dtype == torch.bfloat16 else hidden), context

    monkeypatch.setattr(type(made.model.tower("text")), "start", wrong)
    (c4,) = verify(made, only=["C4"]).certificates
    assert not c4.passed
    assert "at most 1.0e-01 was expected" in c4.detail


def test_saving_loading_and_exporting_keep_the_bytes(hub: Path, tmp_path: Path) -> None:
    made = zipped(text(hub))
    made.save(tmp_path / "model")
    assert read_checkpoint_manifest(tmp_path / "model")["towers"]["text"]["source"] == str(hub)
    found = zippkit.load(tmp_path / "model")
    assert own(found) == {torch.bfloat16}
    assert found.spec.towers["text"].dtype == "bf16", "it needs no file to know"
    again = zippkit.load(tmp_path / "model", spec=make_spec({"text": text(hub), "other": tower(1, 8)}))
    assert own(again) == {torch.bfloat16}
    export_tower(tmp_path / "model", "text", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (hub / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"towers\.text: dtype is 'bf16' there and 'fp32' here; make them"):
        zippkit.load(tmp_path / "model", spec=make_spec({"text": text(hub) | {"dtype": "fp32"}}))


def test_a_frozen_tower_without_a_source_is_saved_in_its_dtype(tmp_path: Path) -> None:
    zipped(tower(2, 8, freeze=True, dtype="bf16")).save(tmp_path / "model")
    assert {t.dtype for t in read_tensors(tmp_path / "model" / "towers" / "text").values()} == {torch.bfloat16}
    assert own(zippkit.load(tmp_path / "model")) == {torch.bfloat16}


def test_merged_adapters_keep_the_dtype(hub: Path, tmp_path: Path) -> None:
    made = zipped(text(hub, **LORA))
    randomise(made.model.adapters)
    made.save(tmp_path / "model")
    export_tower(tmp_path / "model", "text", tmp_path / "out", merge=True)
    merged = read_tensors(tmp_path / "out")
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert model.dtype == torch.bfloat16
    tokens = torch.randint(20, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tower_logits(made.model.tower("text"), TowerBatch.alone(tokens))
        assert (model(tokens).logits - expected).abs().mean() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("dtype", ["auto", "bf16"])
def test_sizes_count_it(hub: Path, dtype: str) -> None:
    halves, wholes = (sizes(make_spec({"text": text(hub) | {"dtype": d}})).parts[0] for d in (dtype, "fp32"))
    assert (halves.parameters, halves.trained) == (wholes.parameters, 0)
    parameters = 2 * halves.parameters
    assert wholes.bytes - halves.bytes == parameters, "but for buffers, which are angles in float32"


@pytest.mark.parametrize("freeze", [False, {"*": "train"}, {"norm.weight": "train", "[!n]*": "freeze"}])
@pytest.mark.parametrize("dtype", ["auto", "bf16"])
def test_a_tower_that_is_trained_is_refused(freeze: Any, dtype: str) -> None:
    data = {"name": "it", "towers": {"text": tower(1, 8, freeze=freeze, dtype=dtype)}}
    _, complaints = check_spec(data)
    assert [place for place, _ in complaints] == [("towers", "text", "dtype")]
    assert complaints[0][1].startswith(f"{dtype} is for a tower that is frozen as a whole: bf16 would round most steps")


def test_towers_that_share_weights_share_the_dtype(hub: Path) -> None:
    spec = concrete(make_spec({"text": text(hub), "again": {"share_with": "text"}}))
    assert [tower.dtype for tower in spec.towers.values()] == ["bf16", "bf16"]


def test_a_tower_that_is_made_in_float32_alone_says_so() -> None:
    class Stubborn(Decoder):
        def __init__(self, config: DecoderConfig) -> None:
            super().__init__(config)
            self.norm = torch.nn.RMSNorm(config.dim, dtype=torch.float32)

    config = DecoderConfig(dim=8, n_layers=1, n_heads=2, vocab_size=20)
    with pytest.raises(
        ZippkitError, match="a 'Stubborn' tower is run in float32 alone, not in bfloat16; leave `dtype`"
    ):
        new_tower(Stubborn, config, torch.bfloat16)
