"""The image tower: it keeps the protocol, knows rows and columns, and learns what a plain decoder cannot tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.compositions import link, make, tower
from zippkit.batch.batch import Segment
from zippkit.batch.collate import collate
from zippkit.generation.api import generate
from zippkit.model.run_tower import tower_logits
from zippkit.spec.kinds import Frame
from zippkit.testing import check_tower
from zippkit_towers.image_units.config import ImageUnitsConfig
from zippkit_towers.image_units.tower import ImageUnits

SMALL: dict[str, Any] = {"dim": 16, "n_layers": 2, "n_heads": 2, "ffn_dim": 32}


@pytest.mark.parametrize("sizes", [{}, {"side": 3, "levels": 4}])
def test_it_keeps_the_protocol(sizes: dict[str, int]) -> None:
    assert check_tower(ImageUnitsConfig(**SMALL, **sizes)) == []


def test_what_is_left_out_follows_from_side_and_levels() -> None:
    plain = ImageUnitsConfig(**SMALL)
    assert (plain.side, plain.levels, plain.vocab_size, plain.max_len) == (8, 17, 19, 16 * 66)
    assert plain.frame == Frame(begin=17, end=18)
    other = ImageUnitsConfig(**SMALL, side=3, levels=4)
    assert (other.vocab_size, other.max_len, other.frame) == (6, 16 * 11, Frame(begin=4, end=5))
    assert ImageUnitsConfig(**SMALL, vocab_size=30, max_len=None).max_len is None
    for wrong, message in (({"vocab_size": 5}, "no room for 17 levels"), ({"levels": "x"}, "valid integer")):
        with pytest.raises(ValueError, match=message):
            ImageUnitsConfig.model_validate(SMALL | wrong)


def test_row_and_column_are_those_of_the_pixel_to_come_in_every_image() -> None:
    config = ImageUnitsConfig(**SMALL, side=3, levels=4)
    it = ImageUnits(config)
    with torch.no_grad():
        it.embed_tokens.weight.zero_()
        it.embed_rows.weight[:, :] = torch.arange(4.0)[:, None]
        it.embed_columns.weight[:, :] = 10 * torch.arange(3.0)[:, None]
    # The second image is cut short, and a third runs on.
    rows = [[Segment("image", [0] * n) for n in (9, 2, 11)]]
    hidden, _ = it.start(collate(rows, {"image": config}).towers["image"], None)
    whole = [0, 10, 20, 1, 11, 21, 2, 12, 22, 3, 3]
    assert hidden[0, :, 0].tolist() == [*whole, *whole[:4], *whole, 3, 3]


def test_a_composition_trains_generates_and_loads_its_own_names() -> None:
    image = {"kind": "image_units", "config": {**SMALL, "side": 2, "levels": 3}}
    zipped = make({"text": tower(), "image": image}, [link("text", "image", every=1), link("image", "text", every=1)])
    rows = [[Segment("text", [1, 2]), Segment("image", [0, 1, 2, 1])]]
    batch = zipped.collate(rows)
    losses = zipped.loss(zipped.model(batch), batch)
    losses["total"].backward()
    assert all(p.grad is not None for p in zipped.model.tower("image").parameters())
    names = zipped.graph.towers["image"].parameter_names()
    assert sorted(names or []) == sorted(dict(zipped.model.tower("image").named_parameters()))
    (drawn,) = generate(zipped, [Segment("text", [1, 2])], ["image"], max_tokens=4)
    assert drawn.tower == "image" and len(drawn.tokens) <= 4


def test_generation_tells_the_place_of_each_pixel() -> None:
    """Greedy decoding with caches equals the whole image through the tower at once."""
    image = {"kind": "image_units", "config": {**SMALL, "side": 3, "levels": 4}}
    zipped = make({"image": image, "text": tower()})
    prompt = [Segment("image", [1, 2, 0, 3, 1])]
    tokens: list[int] = []
    it = zipped.model.tower("image")
    for _ in range(9):
        batch = zipped.collate([[*prompt, Segment("image", tokens)]]).towers["image"]
        with torch.no_grad():
            chosen = int(tower_logits(it, batch)[0, -2].argmax())
        if chosen == 5:
            break
        tokens.append(chosen)
    (drawn,) = generate(zipped, prompt, ["image"], max_tokens=9)
    assert drawn.tokens == tokens and len(set(tokens)) > 1
