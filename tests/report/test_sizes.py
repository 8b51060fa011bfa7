"""Sizes without weights: what is counted on shapes alone is what the really built model has, runs and keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import zippkit
from helpers.compositions import SPEC, link, make_spec, tower
from helpers.tiny_encoders import MODELS
from zippkit import cli
from zippkit.batch.batch import Batch, Segment
from zippkit.errors import DataError, SpecError, ZippkitError
from zippkit.loading import load_spec
from zippkit.model.decoding_state import Decoding
from zippkit.plan.plan import Wanted
from zippkit.report.sizes import Sizes, n_bytes, sizes
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.task import Task, linked_tasks

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "recipes"
# Of the rest one has to be fetched.
COMPOSITIONS = sorted(file for file in (RECIPES / "compositions").glob("*.yaml") if file.stem != "smollm2_listens")
LENGTHS = (12, 5)
BIG = """\
name: big
towers:
  text:
    kind: decoder
    config: {vocab_size: 32000, dim: 4096, n_layers: 32, n_heads: 32, ffn_dim: 11008, tied: false}
    frame: {begin: 1, end: 2}
    freeze: true
  speech:
    kind: decoder
    config: {vocab_size: 1026, dim: 2048, n_layers: 16, n_heads: 32, n_kv_heads: 8, ffn_dim: 8192}
    frame: {begin: 1024, end: 1025}
links:
  - {kind: gated_cross_attention, from: speech, into: text, every: 4}
"""


def example(zipped: zippkit.Composition, task: Task) -> list[Segment]:
    """The task's segments, of the lengths above where they can vary."""
    segments = []
    for name in task.modalities:
        n, config = LENGTHS[name in task.targets], zipped.graph.readers[name]
        tokens: Any = config.example_inputs(n, seed=0) if config.continuous else [1] * n
        segments.append(Segment(name, tokens, loss=name in task.targets))
    return segments


def really_counted(zipped: zippkit.Composition, batch: Batch) -> tuple[int, int]:
    """Forward, and forward and backward, as torch counts them on values."""
    # torch counts attention only where it is made of matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        losses = zipped.loss(zipped.model.train()(batch), batch)
        forward = counter.get_total_flops()
        losses["total"].backward()  # type: ignore[no-untyped-call]
    return forward, counter.get_total_flops()


def really_kept(zipped: zippkit.Composition, batch: Batch) -> dict[str, float]:
    """Bytes of each link's memory for each token of its source, after these tokens were read."""
    sites = {site for site in zipped.graph.sites if site.source in batch.towers}
    decoding = Decoding(batch.size)
    with torch.no_grad():
        plan = zipped.plan.prune(Wanted(sees=batch.sees, writes=sites))
        zipped.model.run(plan, batch.towers, multimodal=False, decoding=decoding)
        zipped.model.commit(decoding, decoding.rows)
    found: dict[str, float] = {}
    for site, memory in decoding.memories.items():
        n = batch.towers[site.source].tokens.shape[1]
        kept = memory.order.nbytes + sum(tensor.nbytes for tensor in memory.tensors)
        found[site.link] = found.get(site.link, 0) + kept / n
    return found


@pytest.mark.parametrize("file", COMPOSITIONS, ids=lambda file: file.stem)
def test_what_is_counted_is_what_the_built_model_has_and_does(file: Path) -> None:
    spec = load_spec(file)
    zipped = zippkit.compile(spec)
    found = sizes(spec, source_tokens=LENGTHS[0], target_tokens=LENGTHS[1])
    parameters = dict(zipped.model.named_parameters())
    assert found.total.parameters == sum(p.numel() for p in parameters.values())
    assert found.total.trained == sum(p.numel() for p in parameters.values() if p.requires_grad)
    buffers = sum(buffer.nbytes for buffer in zipped.model.buffers())
    assert found.total.bytes == sum(p.nbytes for p in parameters.values()) + buffers
    for part in found.parts:
        own = [p for name, p in parameters.items() if name.startswith(f"{part.name}.")]
        assert (part.parameters, part.trained) == (
            sum(p.numel() for p in own),
            sum(p.numel() for p in own if p.requires_grad),
        )
    assert [cost.task for cost in found.tasks] == [str(task) for task in linked_tasks(spec)]
    for cost in found.tasks:
        batch = zipped.collate([example(zipped, Task.parse(cost.task))])
        assert cost.problem == ""
        assert dict(cost.tokens) == {name: each.tokens.shape[1] for name, each in batch.towers.items()}
        assert (cost.forward, cost.training) == really_counted(zipped, batch)
    for name, config in zipped.graph.towers.items():
        if name in found.cache:
            assert found.cache[name] == n_bytes(zipped.model.tower(name).new_cache(1, 1))
        assert (name in found.cache) == config.causal
        if any(site.source == name for site in zipped.graph.sites):
            batch = zipped.collate([example(zipped, Task((name,), name))[:1]])
            for label, kept in really_kept(zipped, batch).items():
                assert found.memory[label] == pytest.approx(kept)


def two(**towers: Any) -> dict[str, Any]:
    return {"text": tower(freeze=True), "speech": tower(6, 24, 30)} | towers


def test_a_predicted_token_is_one_that_carries_a_loss() -> None:
    (cost,) = sizes(make_spec(two(), [link("speech", "text", every=2)])).tasks
    assert dict(cost.tokens) == {"text": 66, "speech": 258}
    # Begin and 64 tokens predict the 64 and the end.
    assert cost.predicted == 65
    assert cost.forward is not None
    assert cost.per_token(cost.forward) == cost.forward / 65


def test_training_a_frozen_tower_costs_less() -> None:
    links = [link("speech", "text", every=2)]
    (frozen,) = sizes(make_spec(two(), links)).tasks
    (trained,) = sizes(make_spec(two(text=tower()), links)).tasks
    assert frozen.forward == trained.forward
    assert (frozen.training or 0) < (trained.training or 0)
    alone = make_spec({"text": tower(freeze=True)})
    (nothing,) = sizes(alone).tasks
    assert nothing.training == nothing.forward


def test_shared_parameters_count_once() -> None:
    def with_share(share: str) -> Sizes:
        both = [link("speech", "text", every=2), link("text", "speech", every=3)]
        links = [{**each, "projection": {"depth": 2, "share": share}} for each in both]
        return sizes(make_spec({"text": tower(), "speech": tower(6)}, links), [])

    each, once = with_share("none"), with_share("directions")
    # Two linear maps of 16 x 16 for each of two sites each way, or for all of them.
    assert each.total.parameters - once.total.parameters == 3 * 2 * (16 * 16 + 16)
    alone = sizes(make_spec({"left": tower()}), [])
    shared = sizes(make_spec({"left": tower(), "right": {"share_with": "left"}}), [])
    assert shared.total == alone.total
    assert [part.name for part in shared.parts] == ["towers.left"]


def test_lengths_are_shortened_to_what_fits_unless_they_are_given() -> None:
    spec = make_spec(two(text=tower(config={"max_len": 20})), [link("text", "speech", every=2)])
    (cost,) = sizes(spec).tasks
    assert dict(cost.tokens) == {"text": 20, "speech": 66}
    with pytest.raises(DataError, match=r"text -> speech.* at most 20"):
        sizes(spec, source_tokens=19)
    shared = [{"kind": "joint_attention", "from": "text", "into": "speech", "every": 2}]
    joined = make_spec({"text": tower(config={"max_len": 40}), "speech": tower(4)}, shared)
    (cost,) = sizes(joined).tasks
    assert sum(cost.tokens.values()) > 20


@pytest.mark.parametrize(
    ("task", "said"), [("speech -> txt", "did you mean 'text'"), ("text -> image", "not predicted")]
)
def test_a_task_that_is_none(task: str, said: str) -> None:
    image = {"kind": "hf_encoder", "config": {"model": MODELS["vit"]}}
    spec = make_spec(two(image=image), [link("speech", "text", every=2)])
    with pytest.raises(ZippkitError, match=said):
        sizes(spec, [task])


def test_shapes_that_depend_on_values_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from zippkit_towers.decoder.tower import Decoder

    def head(self: Decoder, hidden: Tensor) -> Tensor:
        return hidden[: int(hidden.sum())]

    monkeypatch.setattr(Decoder, "head", head)
    (cost,) = sizes(make_spec({"text": tower()})).tasks
    assert cost.forward is None
    assert "meta" in cost.problem


def test_no_weights_need_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELS["vit"]))
    image = {"kind": "hf_encoder", "config": {"path": str(tmp_path)}}
    spec = make_spec(two(image=image), [link("image", "text", every=2)])
    found = sizes(spec)
    assert found.tasks[0].forward
    with pytest.raises((SpecError, ZippkitError)):
        zippkit.compile(spec)
    assert zippkit.compile(spec, device="meta").plan == zippkit.compile(spec, load_weights=False).plan


def test_a_decoder_costs_the_same_whoever_runs_it() -> None:
    llama = {
        "model_type": "llama",
        "vocab_size": 20,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    theirs = {"kind": "hf_causal_lm", "config": {"model": llama}, "frame": {"begin": 18, "end": 19}, "freeze": True}
    links = [link("speech", "text", every=2), link("text", "speech", every=2)]
    ours, found = (sizes(make_spec(two(text=text), links)) for text in (tower(freeze=True), theirs))
    assert (found.total.parameters, found.total.trained) == (ours.total.parameters, ours.total.trained)
    assert (found.tasks, found.cache, found.memory) == (ours.tasks, ours.cache, ours.memory)


def test_on_the_meta_device_nothing_has_a_value() -> None:
    spec = make_spec(two(), [link("speech", "text", every=2)])
    built, shapes = zippkit.compile(spec), zippkit.compile(spec, device="meta")
    assert all(tensor.is_meta for tensor in shapes.model.state_dict().values())
    assert {name: (p.shape, p.requires_grad) for name, p in built.model.named_parameters()} == {
        name: (p.shape, p.requires_grad) for name, p in shapes.model.named_parameters()
    }


def test_a_large_composition_is_counted_at_once_and_without_torchs_compiler(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text(BIG)
    code = f"""
import resource, sys, zippkit
resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))  # The weights would be 36 GB.
found = zippkit.sizes(zippkit.load_spec({str(tmp_path / "big.yaml")!r}))
print(found.total.parameters, "torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    n, *slow = done.stdout.split()
    assert int(n) > 9e9
    # The two take a second to import, of the three that the command may take.
    assert slow == ["False", "False"]


def test_the_command_prints_what_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(SPEC)

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["zippkit", "sizes", str(file), *arguments])
        monkeypatch.setenv("COLUMNS", "120")
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert not exit_.value.code
        return capsys.readouterr().out

    found = sizes(CompositionSpec.model_validate(yaml.safe_load(SPEC)))
    printed = call()
    for part in (*found.parts, found.total):
        assert f"{part.parameters:,}" in printed
    assert "speech -> text" in printed
    told = json.loads(call("--json", "--task", "text -> speech", "--target-tokens", "3"))
    assert told["total"]["parameters"] == found.total.parameters
    assert [(cost["task"], cost["predicted"]) for cost in told["tasks"]] == [("text -> speech", 4)]
    assert told["cache"] == dict(found.cache)
