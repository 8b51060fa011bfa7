"""The contrastive loss: which rows belong together, against the loss of CLIP in transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.clip.modeling_clip import image_text_contrastive_loss as clip_loss

from helpers.compositions import link, make, tower
from zippkit.batch.batch import Segment
from zippkit.loading import check_spec
from zippkit.model.contrastive import MASKED, contrast_loss
from zippkit.plan.plan import Wanted
from zippkit.spec.composition_spec import CompositionSpec

TOWERS = {"text": tower(4), "image": tower(2, 24)}
LINKS = [link("image", "text", sites=[{"from": 2, "into": 3}, {"from": 2, "into": 4}])]
CONTRAST: dict[str, Any] = {"from": "image", "into": "text", "target_depth": 2, "weight": 0.5}


def coca(**changes: Any) -> Any:
    import zippkit
    from helpers.compositions import randomise

    data = {"name": "coca", "towers": TOWERS, "links": LINKS, "contrastive": [CONTRAST | changes]}
    zipped = zippkit.compile(CompositionSpec.model_validate(data))
    randomise(zipped.model)
    return zipped


ROWS = [[Segment("image", [i, 2, i], loss=False), Segment("text", [i, 3])] for i in range(1, 5)]


def test_the_loss_is_clip_s() -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(contrast_loss(logits), clip_loss(logits))


def test_rows_that_lack_a_tower_do_not_count() -> None:
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    there = torch.tensor([True, True, False, True, False, True])
    masked = torch.where(there[:, None] & there[None, :], logits, MASKED)
    loss = contrast_loss(masked)
    assert torch.allclose(loss, clip_loss(logits[there][:, there]))
    loss.backward()
    assert logits.grad.isfinite().all() and not logits.grad[~there].any()
    assert float(contrast_loss(torch.full((2, 2), MASKED))) == 0


def test_it_is_added_to_the_loss_of_the_tokens() -> None:
    zipped = coca()
    batch = zipped.collate([*ROWS, [Segment("text", [1])]])
    logits = zipped.model(batch)
    assert logits["image_text_contrast"].shape == (5, 5)
    losses = zipped.loss(logits, batch)
    assert torch.allclose(losses["total"], losses["text"] + 0.5 * losses["image_text_contrast"])
    assert torch.allclose(losses["image_text_contrast"], clip_loss(logits["image_text_contrast"][:4, :4]))


def test_the_text_is_compared_before_it_sees_the_image() -> None:
    """Another image leaves the text's side as it is; the similarity is that of the state of its last token."""
    zipped = coca()
    pools = []
    head = zipped.model.contrastive["image_text_contrast"]
    for image in (1, 5):
        batch = zipped.collate([[Segment("image", [image], loss=False), Segment("text", [2, 3])]])
        tokens = batch.towers["text"]
        hidden, context = zipped.model.tower("text").start(tokens, None)
        for index in range(2):
            hidden = zipped.model.tower("text").layer(index, hidden, context)
        text = torch.nn.functional.normalize(head.target_map(hidden[:, -1]), dim=-1)
        pools.append(head.pool("text", hidden, tokens)[0])
        assert torch.allclose(pools[-1], text)
    assert torch.equal(*pools)


def test_the_similarity_is_a_cosine_times_the_learnt_scale() -> None:
    zipped = coca()
    head = zipped.model.contrastive["image_text_contrast"]
    batch, found = zipped.collate(ROWS), []
    for log_scale in (0.0, 2.0, 9.0):
        with torch.no_grad():
            head.log_scale.fill_(log_scale)
        found.append(zipped.model(batch)["image_text_contrast"])
    cosines = found[0]
    assert cosines.abs().max() <= 1 + 1e-6
    assert torch.allclose(found[1], cosines * torch.tensor(2.0).exp(), atol=1e-5)
    assert torch.allclose(found[2], cosines * 100, atol=1e-4), "a scale of 100 is the largest"
    with torch.no_grad():
        head.log_scale.fill_(0.5)
    contrast_loss(zipped.model(batch)["image_text_contrast"]).backward()
    assert head.log_scale.grad is not None and head.log_scale.grad.abs() > 1e-4


def test_padding_is_neither_averaged_nor_taken_for_the_last_token() -> None:
    zipped = coca()
    longer = [Segment("image", list(range(9)), loss=False), Segment("text", [1, 2, 3, 4, 5, 6, 7])]
    together = zipped.model(zipped.collate([*ROWS, longer], multiple=8))["image_text_contrast"]
    assert torch.allclose(together[:4, :4], zipped.model(zipped.collate(ROWS))["image_text_contrast"], atol=1e-4)


def test_nothing_is_compared_where_nothing_is_trained_or_a_tower_is_missing() -> None:
    zipped = coca()
    assert zipped.model(zipped.collate([[Segment("text", [1])]])).keys() == {"text"}
    silent = zipped.collate([[Segment("image", [1], loss=False), Segment("text", [1], loss=False)]])
    assert zipped.model(silent) == {}
    assert not any(op.kind == "pool" for op in zipped.plan.prune(Wanted(heads={"text"}, sees={("text", "image")})).ops)


def test_wrong_ends_are_told() -> None:
    def told(**changes: Any) -> str:
        data = {"name": "coca", "towers": TOWERS, "links": LINKS, "contrastive": [CONTRAST | changes]}
        return "; ".join(f"{'.'.join(map(str, place))}: {message}" for place, message in check_spec(data)[1])

    assert "contrastive.0.from: no tower is called 'imag'; did you mean 'image'?" in told(**{"from": "imag"})
    assert "contrastive.0.into: depth 9 of 'text', which has 4 layers" in told(target_depth=9)
    assert "both are 'text'" in told(**{"from": "text"})
    assert "something else is called 'text'" in told(name="text")
    assert told() == ""


def test_a_composition_without_contrast_has_none() -> None:
    zipped = make(TOWERS, LINKS)
    assert not zipped.model.groups["contrastive"]
