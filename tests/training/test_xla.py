"""The third device: steps, runs, scores and generation on xla are those of the CPU, and compiled once for a shape.

They run where torch_xla is installed, which is an environment of its own: `make test-xla`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import zippkit
from helpers.compositions import link, make, tower
from helpers.tiny_runs import tiny_recipe
from helpers.tiny_runs import zippkit as command
from zippkit.batch.batch import Batch, Segment
from zippkit.model.weights import identity, module_state
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.phase import Phase
from zippkit.system.extras import is_installed
from zippkit.training.device import Backend, backend
from zippkit.training.optimizer import build_optimizer
from zippkit.training.step import build_step
from zippkit.training.trainer import train

pytestmark = [
    pytest.mark.xla,
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed("torch_xla"), reason="torch_xla is not installed here; `make test-xla`"),
]

PHASE = Phase(steps=4, learning_rate=1e-3)
LENGTHS = (3, 2, 20, 4, 21, 1)
"""Longest segments of each step: of two buckets, in turns."""


def made() -> zippkit.Composition:
    towers = {"text": tower(1, 8, config={"tied": True}), "speech": tower(1, 8)}
    return make(towers, [link("speech", "text", every=1)])


def bucketed(zipped: zippkit.Composition, longest: int) -> Batch:
    numbers = torch.Generator().manual_seed(longest)

    def segment(name: str, length: int) -> Segment:
        return Segment(name, torch.randint(0, 18, (length,), generator=numbers))

    lengths = [longest, *torch.randint(1, longest + 1, (3,), generator=numbers).tolist()]
    rows = [[segment("speech", length), segment("text", length)] for length in lengths]
    return zipped.collate(rows, multiple=16).with_places(256)


def learnt(device: Backend) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The numbers of each step, and the weights after the last one."""
    zipped = made()
    device.place(zipped.model.train())
    optimizer = build_optimizer(zipped.model, learning_rates(zipped.spec, PHASE), PHASE)
    step = build_step(zipped.model, optimizer, PHASE, device)
    found = [step(device.put(bucketed(zipped, longest))) for longest in LENGTHS]
    state = {name: tensor.cpu() for name, tensor in module_state(zipped.model).items()}
    return [{name: float(value) for name, value in values.items()} for values in found], state


def check_same_as_cpu(losses: list[dict[str, float]], state: dict[str, torch.Tensor]) -> None:
    expected, weights = learnt(backend("cpu"))
    assert losses[0] == pytest.approx(expected[0], rel=1e-5, abs=1e-5)
    for found, values in zip(losses, expected, strict=True):
        assert found == pytest.approx(values, rel=1e-4, abs=1e-4)
    assert all(torch.allclose(state[name], weights[name], atol=1e-4) for name in weights)


def test_steps_are_those_of_the_cpu_and_compiled_once_for_a_bucket() -> None:
    from torch_xla.debug import metrics

    device = backend("xla")
    metrics.clear_all()
    check_same_as_cpu(*learnt(device))
    compiled = metrics.metric_data("CompileTime")
    assert compiled is not None
    assert compiled[0] == 3, "what was there before the first step, and two buckets"
    assert {name for name in metrics.counter_names() if name.startswith("aten::")} <= {"aten::_local_scalar_dense"}


def test_what_is_tied_stays_tied() -> None:
    device, zipped = backend("xla"), make({"text": tower(1, 8, config={"tied": True}), "other": {"share_with": "text"}})
    before = tied(zipped)
    assert len(before) > 1
    device.place(zipped.model)
    assert tied(zipped) == before
    assert {parameter.device.type for parameter in zipped.model.parameters()} == {"xla"}
    state = module_state(zipped.model)
    assert {identity(state[a]) == identity(state[b]) for a, b in before} == {True}


def tied(zipped: zippkit.Composition) -> set[tuple[str, str]]:
    """Pairs of names of one parameter."""
    first: dict[int, str] = {}
    named = zipped.model.named_parameters(remove_duplicate=False)
    return {(first.setdefault(id(p), name), name) for name, p in named} - {(name, name) for name in first.values()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same short run on the CPU and on xla, which was stopped once and went on from its checkpoint."""
    backend("xla")  # before any backward pass on the host, as in a process of its own
    folder = tmp_path_factory.mktemp("runs")
    phase = {"steps": 4, "save_every": 2, "log_every": 1, "pad_multiple": 32}
    train(tiny_recipe(folder, phase), folder / "cpu")
    train(tiny_recipe(folder, phase | {"steps": 2}, device="xla"), folder / "xla")
    train(tiny_recipe(folder, phase, device="xla"), folder / "xla")
    return {name: folder / name for name in ("cpu", "xla")}


def test_a_run_and_its_checkpoints_are_those_of_the_cpu(runs: dict[str, Path]) -> None:
    one, other = (zippkit.load(runs[name]).model.state_dict() for name in ("cpu", "xla"))
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)
    assert losses(runs["xla"]) == pytest.approx(losses(runs["cpu"]), rel=1e-4)


def losses(run: Path) -> list[float]:
    """Of each step, from its metrics."""
    return [json.loads(line)["losses"]["total"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_scored(runs: dict[str, Path]) -> None:
    scores = [json.loads(command("eval", run, "--split", "test", "--json").stdout) for run in runs.values()]
    assert scores[0].keys() == scores[1].keys()


def test_generation_is_that_of_the_cpu_and_compiled_for_few_lengths() -> None:
    from torch_xla.debug import metrics

    zipped, device = made(), backend("xla")
    prompts = [[Segment("speech", [1, 2, 3])], [Segment("speech", [4])]]
    expected = zippkit.generate_batch(zipped, prompts, ["text"], 12)
    device.place(zipped.model)
    metrics.clear_all()
    found = zippkit.generate_batch(zipped, prompts, ["text"], 12)
    assert [[list(s.tokens) for s in row] for row in found] == [[list(s.tokens) for s in row] for row in expected]
    compiled = metrics.metric_data("CompileTime")
    assert compiled is not None and compiled[0] <= 8, compiled


def test_four_devices_as_one_are_the_cpu() -> None:
    """In a process of its own, which has virtual devices."""
    code = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from training.test_xla import backend, learnt
device = backend("xla")
assert device.mesh.size() == 4
losses, state = learnt(device)
from torch_xla.debug import metrics
print(json.dumps([losses, {n: t.tolist() for n, t in state.items()}, metrics.metric_data("CompileTime")[0]]))
"""
    surroundings = os.environ | {"XLA_USE_SPMD": "1", "CPU_NUM_DEVICES": "4"}
    tests = str(Path(__file__).parents[1])
    words = [sys.executable, "-c", code, tests]
    done = subprocess.run(words, env=surroundings, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: Any = json.loads(done.stdout.splitlines()[-1])
    check_same_as_cpu(found[0], {name: torch.tensor(values) for name, values in found[1].items()})
