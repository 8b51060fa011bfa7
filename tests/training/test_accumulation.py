"""A step in several parts is the step: its losses, its gradients, its place in a run."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import zippkit
from helpers.compositions import link, make, randomise, tower
from helpers.tiny_runs import saved, tiny_recipe, write_recipe
from zippkit.batch.batch import Batch, Segment
from zippkit.composition import Composition
from zippkit.errors import DataError, SpecError
from zippkit.loading import load_recipe
from zippkit.model.loss import Counts
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.phase import Phase
from zippkit.training.device import CPU
from zippkit.training.metrics import read_metrics
from zippkit.training.optimizer import build_optimizer
from zippkit.training.step import build_step
from zippkit.training.trainer import train

LINKS = [link("speech", "text", every=1), link("text", "speech", every=2)]
ROWS = (["speech", "text"], ["text", "speech", "text"], ["text"], ["speech"], ["text", "speech"])


def small(**more: Any) -> Composition:
    towers = {"text": tower(1, 8, input_projection={}), "speech": tower(2, 8)}
    spec = {"name": "tiny", "towers": towers, "links": LINKS, **more}
    made = zippkit.compile(CompositionSpec.model_validate(spec))
    randomise(made.model)
    return made


def batches(made: Composition, parts: Sequence[int]) -> list[Batch]:
    """The same five rows, cut into parts of these sizes; rows differ in length and in what they ask for."""
    numbers = torch.Generator().manual_seed(0)

    def segment(name: str, asked: bool) -> Segment:
        length = int(torch.randint(1, 9, (), generator=numbers))
        return Segment(name, torch.randint(0, 18, (length,), generator=numbers), loss=asked)

    rows = [[segment(name, asked=i + 1 == len(row) or name == "text") for i, name in enumerate(row)] for row in ROWS]
    found = []
    for n in parts:
        part, rows = rows[:n], rows[n:]
        found.append(made.collate(part, 4, multimodal=[len(row) > 1 for row in part]))
    return found


def stepped(made: Composition, parts: Sequence[int], **more: Any) -> tuple[dict[str, torch.Tensor], Any]:
    """Values and gradients of one step of a copy."""
    model = copy.deepcopy(made.model)
    phase = Phase(steps=1, clip=1e6, **more)
    optimizer = build_optimizer(model, learning_rates(made.spec, phase), phase)
    grads: dict[str, torch.Tensor | None] = {}

    def keep(*_: Any) -> None:
        grads.update({name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()})

    optimizer.register_step_pre_hook(keep)
    return build_step(model, optimizer, phase, CPU())(*batches(made, parts)), grads


@pytest.mark.parametrize("parts", [(3, 2), (1, 1, 1, 1, 1), (2, 3)])
@pytest.mark.parametrize("more", [{}, {"next": {}}])
def test_parts_add_up_to_the_step(parts: tuple[int, ...], more: dict[str, Any]) -> None:
    made = small(**more)
    (expected, grads), (found, others) = stepped(made, [5]), stepped(made, parts)
    assert found.keys() == expected.keys() >= {"text", "speech", "total", "gradient_norm", *more}
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-6, atol=1e-6), name
    for name, grad in grads.items():
        assert torch.allclose(others[name], grad, rtol=0, atol=1e-6 * max(1.0, float(grad.abs().max()))), name


def test_a_mean_of_means_would_be_another_step() -> None:
    """So that the test above can fail: parts have different numbers of tokens."""
    made = small()
    alone = torch.stack([made.loss(made.model(each), each)["total"].detach() for each in batches(made, [3, 2])])
    assert abs(alone.mean() - stepped(made, [5])[0]["total"]) > 1e-3


def test_a_part_without_targets_adds_nothing() -> None:
    made = small()
    silent = made.collate([[Segment("text", [1, 2], loss=False)]], 4)
    (whole,) = batches(made, [5])
    phase = Phase(steps=1)
    values = []
    for given in ([whole], [silent, whole]):
        model = copy.deepcopy(made.model)
        step = build_step(model, build_optimizer(model, learning_rates(made.spec, phase), phase), phase, CPU())
        values.append(step(*given))
    assert values[0].keys() == values[1].keys()
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])
    with pytest.raises(DataError, match="no segment of this batch asks for a loss"):
        step(silent, silent)


def test_counts_are_those_of_all_tokens() -> None:
    made = small(next={})
    (whole,), parts = batches(made, [5]), batches(made, [1, 2, 2])
    found, expected = Counts.sum(made.model.counts(part) for part in parts), made.model.counts(whole)
    assert {name: int(n) for name, n in found.tokens.items()} == {n: int(each) for n, each in expected.tokens.items()}
    assert int(found.others["next"]) == int(expected.others["next"]) == sum(map(len, ROWS))
    assert found.n_batches == 3


def test_losses_of_routers_are_means_by_tokens() -> None:
    model = {"model_type": "mixtral", "vocab_size": 20, "hidden_size": 16, "intermediate_size": 32}
    model |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    model |= {"num_experts_per_tok": 2, "bos_token_id": 18, "eos_token_id": 19, "router_aux_loss_coef": 0.1}
    text = {"kind": "hf_causal_lm", "config": {"model": model}, "frame": {"begin": 18, "end": 19}}
    made = make({"text": text, "speech": tower(1, 8)}, [link("speech", "text", every=1)])
    parts = batches(made, [3, 2])
    alone = [made.loss(made.model(part), part)["router.text"].detach() for part in parts]
    n = torch.tensor([int((part.towers["text"].order >= 0).sum()) for part in parts])
    found = stepped(made, [3, 2])[0]["router.text"]
    assert torch.allclose(found, (torch.stack(alone) * n).sum() / n.sum())


@pytest.mark.slow
def test_a_run_in_parts_is_the_run(tmp_path: Path) -> None:
    """Twelve steps of four examples, whole and in three parts, stopped in between and not."""
    train(tiny_recipe(tmp_path), tmp_path / "whole")
    train(tiny_recipe(tmp_path, {"accumulate": 3}), tmp_path / "parts")
    lines = [[line["losses"]["total"] for line in read_metrics(tmp_path / run)] for run in ("whole", "parts")]
    assert lines[0] == pytest.approx(lines[1], abs=1e-4) and lines[0] != lines[1]
    for name, tensor in saved(tmp_path / "whole").items():
        assert torch.allclose(tensor.float(), saved(tmp_path / "parts")[name].float(), atol=1e-3), name


def test_more_parts_than_examples() -> None:
    with pytest.raises(ValidationError, match=r"`accumulate` 5 is more parts than `batch_size` 4 has examples"):
        Phase(steps=1, batch_size=4, accumulate=5)


def test_contrastive_losses_need_all_rows(tmp_path: Path) -> None:
    file = write_recipe(tmp_path, {"accumulate": 2})
    text = file.read_text().replace("  links:\n", "  contrastive:\n  - {from: speech, into: text}\n  links:\n")
    file.write_text(text)
    told = "train.accumulate: the contrastive loss 'speech_text_contrast' compares all rows of a step"
    with pytest.raises(SpecError, match=re.escape(told)):
        load_recipe(file)
