"""Every kind of link and loss in a step for which no device waits, and which is compiled once for a bucket."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import zippkit
from helpers.compositions import link, randomise, tower
from zippkit.batch.batch import Batch, Segment
from zippkit.spec.composition_spec import CompositionSpec

pytestmark = pytest.mark.slow

BOTH = {"text": tower(2), "speech": tower(2)}
CASES: dict[str, dict[str, Any]] = {
    "prefix": {"towers": BOTH, "links": [{"kind": "prefix", "from": "speech", "into": "text", "config": {"stack": 2}}]},
    "joint attention": {
        "towers": BOTH,
        "links": [
            {"kind": "joint_attention", "from": "speech", "into": "text", "every": 1},
            {"kind": "joint_attention", "from": "text", "into": "speech", "every": 1},
        ],
    },
    "one clock": {
        "towers": BOTH,
        "links": [link("speech", "text", every=1, clock="sync"), link("text", "speech", every=1, clock="sync")],
    },
    "added vocabulary": {"towers": {"text": tower(2, extend_vocabulary={"speech": 20})}, "links": []},
    "contrastive": {
        "towers": BOTH,
        "links": [link("speech", "text", every=2)],
        "contrastive": [{"from": "speech", "into": "text", "target_depth": 1}],
    },
}


def compiled_spec(name: str) -> zippkit.Composition:
    zipped = zippkit.compile(CompositionSpec.model_validate({"name": "tiny", **CASES[name]}))
    randomise(zipped.model)
    return zipped


def batch(zipped: zippkit.Composition, seed: int) -> Batch:
    """Other tokens, and other lengths in one bucket, for each seed."""
    n = torch.Generator().manual_seed(seed)

    def segment(name: str, length: int) -> Segment:
        return Segment(name, torch.randint(0, 18, (length,), generator=n))

    lengths = torch.randint(1, 5, (3,), generator=n).tolist()
    rows = [[segment("speech", length), segment("text", length)] for length in lengths]
    return zipped.collate([*rows, [segment("text", 2)]], multiple=16, multimodal=[True, True, True, False])


@pytest.mark.parametrize("name", CASES)
def test_nothing_in_a_step_looks_at_a_value(name: str) -> None:
    real = batch(compiled_spec(name), 0)
    with FakeTensorMode() as mode:
        zipped = compiled_spec(name)
        towers = {key: each.mapped(mode.from_tensor) for key, each in real.towers.items()}
        fake = replace(real, towers=towers, multimodal=mode.from_tensor(real.multimodal))
        zipped.loss(zipped.model(fake), fake)["total"].backward()


@torch._dynamo.config.patch(error_on_recompile=True)
@pytest.mark.parametrize("name", CASES)
def test_one_compilation_serves_a_bucket(name: str) -> None:
    zipped = compiled_spec(name)
    compiled = torch.compile(zipped.model, fullgraph=True, dynamic=False, backend="eager")
    for seed in range(2):
        given = batch(zipped, seed)
        found, expected = compiled(given), zipped.model(given)
        assert found.keys() == expected.keys()
        for key, logits in expected.items():
            assert torch.allclose(found[key], logits, rtol=1e-4, atol=1e-5), key
