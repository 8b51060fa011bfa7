"""Hashes of what is frozen: they notice every change, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.compositions import link, make, tower
from zippkit.checkpoint.frozen_hashes import check_frozen, frozen_hashes
from zippkit.composition import Composition
from zippkit.errors import ZippkitError


@pytest.fixture
def zipped() -> Composition:
    rules = {"layers.0.*": "freeze", "embed_tokens.*": "train", "norm.*": "train"}
    return make(
        {"text": tower(1, 8, freeze=True), "speech": tower(1, 8, freeze=rules)}, [link("speech", "text", every=1)]
    )


def test_what_is_frozen_has_a_hash(zipped: Composition) -> None:
    hashes = frozen_hashes(zipped.spec, zipped.model)
    frozen = {name for name, parameter in zipped.model.named_parameters() if not parameter.requires_grad}
    assert hashes.keys() == frozen
    assert "towers.speech.layers.0.mlp.up_proj.weight" in frozen
    assert "towers.speech.norm.weight" not in frozen
    check_frozen(hashes, zipped.spec, zipped.model)


@torch.no_grad()
def test_every_change_is_noticed_and_named(zipped: Composition) -> None:
    before = frozen_hashes(zipped.spec, zipped.model)
    for name, parameter in zipped.model.named_parameters():
        original = parameter.clone()
        flat = parameter.view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(float("inf")))
        if name in before:
            with pytest.raises(ZippkitError) as failure:
                check_frozen(before, zipped.spec, zipped.model)
            assert name in str(failure.value)
            assert not [other for other in before if other != name and other in str(failure.value)]
        else:
            check_frozen(before, zipped.spec, zipped.model)
        parameter.copy_(original)
    check_frozen(before, zipped.spec, zipped.model)


def test_type_shape_and_the_sign_of_zero_count(zipped: Composition) -> None:
    norm = zipped.model.tower("text").norm
    with torch.no_grad():
        norm.weight[0] = 0.0
    before = frozen_hashes(zipped.spec, zipped.model)
    for change in (torch.tensor(-0.0), None):
        with torch.no_grad():
            norm.weight[0] = 0.0 if change is None else change
        if change is None:
            norm.weight = nn.Parameter(norm.weight.reshape(2, 4), requires_grad=False)
        with pytest.raises(ZippkitError, match=r"towers\.text\.norm\.weight"):
            check_frozen(before, zipped.spec, zipped.model)


def test_a_buffer_of_a_frozen_tower_counts(zipped: Composition) -> None:
    for name in ("text", "speech"):
        zipped.model.tower(name).register_buffer("running", torch.zeros(3))
    before = frozen_hashes(zipped.spec, zipped.model)
    assert "towers.text.running" in before
    zipped.model.tower("text").running += 1
    zipped.model.tower("speech").running += 1
    with pytest.raises(ZippkitError, match=r"towers\.text\.running") as failure:
        check_frozen(before, zipped.spec, zipped.model)
    assert "towers.speech.running" not in str(failure.value)


def test_what_the_spec_freezes_must_not_be_trainable(zipped: Composition) -> None:
    """The spec says what is frozen; freezing more by hand breaks no promise of it."""
    before = frozen_hashes(zipped.spec, zipped.model)
    zipped.model.get_parameter("towers.speech.norm.weight").requires_grad_(False)
    assert frozen_hashes(zipped.spec, zipped.model) == before
    check_frozen(before, zipped.spec, zipped.model)
    zipped.model.get_parameter("towers.text.norm.weight").requires_grad_(True)
    assert frozen_hashes(zipped.spec, zipped.model) == before
    with pytest.raises(ZippkitError, match=r"towers\.text\.norm\.weight is trainable although the spec freezes it"):
        check_frozen(before, zipped.spec, zipped.model)


def test_what_the_spec_freezes_is_what_was_hashed(zipped: Composition) -> None:
    before = frozen_hashes(zipped.spec, zipped.model)
    name = "towers.text.norm.weight"
    less = {key: digest for key, digest in before.items() if key != name}
    with pytest.raises(ZippkitError, match=rf"{name} was not frozen at first"):
        check_frozen(less, zipped.spec, zipped.model)
    with pytest.raises(ZippkitError, match=r"towers.speech.norm.weight is not frozen any more"):
        check_frozen({**before, "towers.speech.norm.weight": ""}, zipped.spec, zipped.model)
