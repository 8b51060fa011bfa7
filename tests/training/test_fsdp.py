"""FSDP2 on one rank changes nothing but where weights are; on the processor, and with NCCL where there is a GPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from helpers.compositions import bucketed, link, make, tower
from zippkit.errors import ZippkitError
from zippkit.spec.parallel import Parallel
from zippkit.training.fsdp import fsdp_units, split
from zippkit.training.parallel import World

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    name: str = request.param
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    backend = "gloo" if name == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield name
    dist.destroy_process_group()


def test_losses_and_gradients_are_those_of_the_whole_model(device: str) -> None:
    made = make({"text": tower(2), "speech": tower(2, place="root")}, [link("speech", "text", every=1)])
    whole, parts = copy.deepcopy(made.model).to(device), made.model.to(device)
    split(parts, made.spec, World(device=device), Parallel(shard="all"))
    assert len(fsdp_units(parts)) == 2 + 2 + 1, "layers of text, sites, the model"
    batch = bucketed(made, 0).to(device)
    totals = [made.loss(model(batch), batch)["total"] for model in (whole, parts)]
    for total in totals:
        total.backward()
    assert torch.allclose(*totals)
    found = {
        name: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for name, p in parts.named_parameters()
    }
    for name, parameter in whole.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, atol=1e-5), name


def test_what_cannot_be_split_so_is_told() -> None:
    made = make({"text": tower(2), "speech": tower(2)}, [link("speech", "text", every=1)])
    with pytest.raises(ZippkitError, match="3 do not divide 1 ranks"):
        split(made.model, made.spec, World(), Parallel(replicas=3))
