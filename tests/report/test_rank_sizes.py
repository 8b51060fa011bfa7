"""Predictions for many ranks: what FSDP2 really holds and sends on so many, and what a step really keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import zippkit
from helpers.compositions import link, make_spec, tower
from zippkit import cli
from zippkit.errors import ZippkitError
from zippkit.loading import load_recipe
from zippkit.report.activations import saved_bytes
from zippkit.report.division import Division, held, messages, units_of, uses
from zippkit.report.hardware import KNOWN, known, recognised
from zippkit.report.prediction import predict
from zippkit.report.rank_sizes import Step, rank_sizes
from zippkit.report.sizes import example_batches
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.phase import Phase

pytestmark = pytest.mark.slow

LENGTHS = {"source_tokens": 12, "target_tokens": 6}
REAL = Path(__file__).parents[1] / "helpers" / "sharded_step.py"


def spec() -> CompositionSpec:
    """A frozen tower that reads a trained one, whose widths few numbers of ranks divide."""
    towers = {"text": tower(freeze=True), "speech": tower(6, 24, 30)}
    return make_spec(towers, [link("speech", "text", every=2, projection={"depth": 1})])


DIVISIONS = [Division(2), Division(5, units="root"), Division(8, "all")]


@cache
def really() -> list[dict[str, Any]]:
    """What one of so many ranks holds and sends, by FSDP2 on a process group whose other ranks do not exist."""
    given = [spec().model_dump(mode="json", by_alias=True), [*LENGTHS.values()], *map(asdict, DIVISIONS)]
    command = [sys.executable, "-W", "ignore", str(REAL), *map(json.dumps, given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("which", range(len(DIVISIONS)))
def test_fsdp_holds_and_sends_what_is_predicted(which: int) -> None:
    model, batches = example_batches(spec(), **LENGTHS)
    division = DIVISIONS[which]
    own = units_of(model, division)
    ((_, batch),) = batches.items()
    sent = list(messages(own, uses(model, model.plan.prune(model.wanted(batch)), own), division, wide=4))
    found = really()[which]
    assert held(own, division, wide=4, moments=2).weights == found["held"]
    for kind in ("all_gather", "reduce_scatter"):
        mine = [message.bytes for message in sent if message.kind == kind]
        more = found["n"][kind] - len(mine)
        # FSDP2 fetches ahead, in the backward pass also a layer or two that need no gradient; it rounds buffers up.
        assert more in (range(3) if (kind, division.shard) == ("all_gather", "all") else [0]), kind
        assert sum(mine) == pytest.approx(found["bytes"][kind], rel=0.005, abs=more * max(mine))


def test_what_is_kept_is_what_autograd_keeps() -> None:
    """Within a twentieth: rotary angles and the like are computed on the way."""
    zipped = zippkit.compile(spec())
    _, batches = example_batches(spec(), **LENGTHS)
    ((_, batch),) = batches.items()
    seen = {parameter.untyped_storage().data_ptr() for parameter in zipped.model.parameters()}
    kept: list[Any] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept.append((storage, tensor.nbytes))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        zipped.model.train()(batch)
    model = zippkit.compile(spec(), device="meta").model.train()
    found = saved_bytes(model, batch.to("meta"))
    assert found == pytest.approx(sum(n for _, n in kept), rel=0.1)
    assert saved_bytes(model, batch.to("meta"), frozenset({"text", "speech"})) < found / 2


def test_more_ranks_hold_less_and_send_more() -> None:
    divisions = [Division(n) for n in (1, 2, 4, 8)]
    costs = rank_sizes(spec(), divisions, known("h100"), Step(rows=4), **LENGTHS)
    assert [cost.ranks for cost in costs] == [1, 2, 4, 8]
    held_, sent = [cost.held.optimizer for cost in costs], [cost.sent for cost in costs]
    assert held_ == sorted(held_, reverse=True)
    assert sent == sorted(sent)
    assert sent[0] == 0
    assert costs[0].least == costs[0].most == costs[0].compute + costs[0].update
    assert all(cost.operations == costs[0].operations for cost in costs)


def test_replicas_keep_the_large_messages_inside_a_node() -> None:
    at_once = replace(known("h100"), latency=0.0)
    divisions = [Division(64), Division(64, replicas=8)]
    wide, nodes = rank_sizes(spec(), divisions, at_once, Step(rows=4), **LENGTHS)
    assert nodes.communication < wide.communication
    assert Counter(nodes.collectives)["all_reduce"] == Counter(nodes.collectives)["reduce_scatter"]
    assert nodes.held.optimizer > wide.held.optimizer


def test_settings_of_a_prediction() -> None:
    given = ["rows=2", "hardware=tpu-v5p", "operations=1e12", "efficiency=0.5", "precision=fp32", "shard=all"]
    (cost,) = predict(spec(), None, [4], given, **LENGTHS)
    assert cost.compute == pytest.approx(cost.operations / (1e12 / 2 * 0.5))
    assert cost.casts == 0


def test_a_recipe_says_how_it_is_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    demo = Path(__file__).parents[2] / "recipes" / "demo" / "recipe.yaml"
    file = tmp_path / "recipe.yaml"
    file.write_text(f"base: {demo}\nparallel: {{shard: all, replicas: 2}}\n")
    recipe = load_recipe(file)
    assert isinstance(recipe.train, Phase)
    (cost,) = predict(recipe.spec, recipe, [4], (), ["speech -> text"], **LENGTHS)
    rows = -(-recipe.train.batch_size // 4)
    step = Step(rows=rows, precision=recipe.train.precision, logits_mib=recipe.train.logits_mib)
    (same,) = rank_sizes(
        recipe.spec, [Division(4, "all", replicas=2)], known("h100"), step, ["speech -> text"], **LENGTHS
    )
    assert cost == same
    arguments = ["zippkit", "sizes", str(file), "--ranks", "4", "--json", "--task", "speech -> text"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--source-tokens", "12", "--target-tokens", "6"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps([cost.as_json()]))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("row=2", "did you mean 'rows'"),
        ("rows", "expected key=value"),
        ("rows=-1", "positive whole number"),
        ("shard=some", "expected one of none, trained, all"),
        ("hardware=h10", "did you mean 'h100'"),
        ("replicas=3", "do not divide"),
        ("frozen=root", "goes with"),
        ("recompute=maybe", "true or false"),
    ],
)
def test_wrong_settings_are_told(setting: str, said: str) -> None:
    with pytest.raises(ZippkitError, match=said):
        predict(spec(), None, [4], [setting], **LENGTHS)


def test_accelerators_are_known_by_the_names_that_drivers_give() -> None:
    assert recognised("NVIDIA H100 80GB HBM3") == KNOWN["h100"]
    assert recognised("NVIDIA H100 PCIe") == KNOWN["h100-pcie"]
    assert recognised("NVIDIA A100-SXM4-80GB") == KNOWN["a100"]
    assert recognised("NVIDIA L40S") == KNOWN["l40s"]
    assert recognised("Some other") is None
