"""A part that zippkit has never heard of, added from here: a learned scale on a tower's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn

import zippkit
from helpers.compositions import link, make_spec, tower
from helpers.plugins import register
from zippkit.model.part_group import where_multimodal
from zippkit.spec.part_kinds import group_names


class LogitScale(zippkit.TowerParts):
    """``logits = scale * logits`` in multimodal rows."""

    class Config(BaseModel):
        init: float = 1.0

    @classmethod
    def part(cls, config: Config, tower: zippkit.Tower) -> nn.Module:
        return nn.ParameterDict({"scale": nn.Parameter(torch.tensor(config.init))})

    def logits(self, name: str, logits: Tensor, hidden: Tensor, multimodal: Tensor | bool) -> Tensor:
        return where_multimodal(self[name]["scale"] * logits, logits, multimodal)


@pytest.fixture
def towers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    register(tmp_path, monkeypatch, "zippkit.parts", logit_scale=LogitScale)
    return {"text": tower(freeze=True, parts={"logit_scale": {"init": 2.0}}), "speech": tower()}


def test_a_part_from_outside_is_built_trained_proved_and_saved(towers: dict[str, Any], tmp_path: Path) -> None:
    zipped = zippkit.compile(make_spec(towers, [link("speech", "text", every=1)]))
    assert "logit_scale.text" in group_names(zipped.spec)
    batch = zipped.collate([[zippkit.Segment("speech", [1, 2]), zippkit.Segment("text", [3, 4])]])
    scaled = zipped.model(batch)["text"]
    zipped.loss(zipped.model(batch), batch)["total"].backward()
    scale = zipped.model.groups["logit_scale"]["text"]["scale"]
    assert float(scale.grad) != 0
    assert zippkit.verify(zipped).passed
    zipped.save(tmp_path / "model")
    assert torch.equal(zippkit.load(tmp_path / "model").model(batch)["text"], scaled)
    scale.data.fill_(1.0)
    assert torch.equal(2 * zipped.model(batch)["text"], scaled)


def test_a_mistake_in_its_section_is_told_like_any_other(towers: dict[str, Any]) -> None:
    for kind, told in (("logit_scal", "did you mean 'logit_scale'"), ("links", "means something else in a model")):
        towers["text"]["parts"] = {kind: {}}
        with pytest.raises(zippkit.SpecError, match=told):
            zippkit.compile(make_spec(towers))
