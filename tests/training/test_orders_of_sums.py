"""Two hundred steps whose sums are added up in other orders: torch's products, oneDNN's, and a compiler's."""

from __future__ import annotations

import pytest
import torch

from helpers.compositions import bucketed, link, make, tower
from zippkit.model import fused, linear
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.phase import Phase
from zippkit.training.device import CPU
from zippkit.training.optimizer import build_optimizer
from zippkit.training.step import build_step

pytestmark = pytest.mark.slow
N_STEPS = 200


def losses(monkeypatch: pytest.MonkeyPatch, least: int, compiled: bool = False) -> list[float]:
    """Of each step, with products and norms of ``least`` and more computed by our own."""
    monkeypatch.setattr(linear, "LEAST", least)
    monkeypatch.setattr(fused, "LEAST", least)
    zipped = make(
        {"text": tower(1, 8, freeze=True, input_projection={}), "speech": tower(1, 8)},
        [link("speech", "text", every=1)],
    )
    phase = Phase(steps=N_STEPS, learning_rate=1e-3)
    optimizer = build_optimizer(zipped.model, learning_rates(zipped.spec, phase), phase)
    model = zipped.model.train()
    if compiled:
        model = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    step = build_step(model, optimizer, phase, CPU())
    batches = [bucketed(zipped, number) for number in range(4)]
    return [float(step(batches[number % 4])["total"]) for number in range(N_STEPS)]


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@torch._dynamo.config.patch(error_on_recompile=True)
def test_losses_of_two_hundred_steps_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = losses(monkeypatch, 1 << 60)
    ours, compiled = losses(monkeypatch, 0), losses(monkeypatch, 0, compiled=True)
    assert plain[-1] < 0.9 * plain[0], "it learns"
    assert ours != plain, "sums are added up in another order"
    assert ours == pytest.approx(plain, rel=1e-3)
    assert compiled == pytest.approx(plain, rel=1e-3)
