"""A tower whose vocabulary is extended: old rows stay, new ones are trained, and each modality keeps to its own ids."""

from __future__ import annotations

import torch

import zippkit
from helpers.compositions import make, make_spec, randomise, tower
from zippkit.batch.batch import Segment
from zippkit.generation.api import generate
from zippkit.loading import check_spec
from zippkit.model.run_tower import tower_logits
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.phase import Phase
from zippkit.spec.task import linked_tasks
from zippkit.training.optimizer import build_optimizer

TOWERS = {"text": tower(2, freeze=True, extend_vocabulary={"speech": 12, "image": {"size": 6, "begin": 0, "end": 1}})}
ROW = [Segment("speech", [1, 2, 3]), Segment("image", [2, 5]), Segment("text", [4, 5])]


def test_new_ids_stand_behind_the_tower_s_own() -> None:
    zipped = zippkit.compile(make_spec(TOWERS))
    batch = zipped.collate([ROW])
    assert batch.towers["text"].tokens.tolist() == [[30, 21, 22, 23, 31, 32, 34, 37, 33, 18, 4, 5, 19]]
    assert zipped.model(batch)["text"].shape == (1, 13, 20 + 12 + 6)


def test_the_tower_s_own_logits_are_untouched() -> None:
    zipped = make(TOWERS)
    batch = zipped.collate([[Segment("text", [4, 5, 6])]])
    alone = tower_logits(zipped.model.tower("text"), batch.towers["text"])
    assert torch.equal(zipped.model(batch)["text"][..., :20], alone)


def test_only_new_rows_are_trained_where_the_tower_is_frozen() -> None:
    zipped = zippkit.compile(make_spec(TOWERS))
    trained = {name: p.shape for name, p in zipped.model.named_parameters() if p.requires_grad}
    assert trained == {"vocabularies.text.embedding.weight": (18, 16), "vocabularies.text.norm.weight": (16,)}
    phase = Phase(steps=1, tasks=["speech -> text"], learning_rate=1e-2)
    optimizer = build_optimizer(zipped.model, learning_rates(zipped.spec, phase), phase)
    before = {name: p.clone() for name, p in zipped.model.named_parameters()}
    batch = zipped.collate([ROW])
    zipped.loss(zipped.model(batch), batch)["total"].backward()
    optimizer.step()
    moved = {name for name, p in zipped.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(trained)


def test_the_rows_of_each_modality_get_its_gradient() -> None:
    zipped = make(TOWERS)
    batch = zipped.collate([[Segment("speech", [3], loss=False), Segment("text", [4])]])
    zipped.model(batch)["text"][..., :20].square().sum().backward()
    gradient = zipped.model.vocabularies["text"].embedding.weight.grad
    assert gradient.any(dim=1).nonzero().flatten().tolist() == [3, 10, 11], "the token, begin and end"


def test_each_modality_is_generated_in_its_own_ids_and_seen_by_the_next() -> None:
    zipped = make(TOWERS)
    for seed in range(3):
        randomise(zipped.model, seed)
        answers = generate(zipped, [Segment("text", [1, 2])], ["speech", "image", "text"], 5)
        for answer, size in zip(answers, (12, 6, 20), strict=True):
            assert all(0 <= token < size for token in answer.tokens)
        batch = zipped.collate([[Segment("text", [1, 2]), *answers]])
        logits = zipped.model(batch)["text"][0]
        start, first = 4, 20
        for i, token in enumerate(answers[0].tokens):
            assert int(logits[start + i, first : first + 12].argmax()) == token, "cached equals full"


def test_tasks_follow_from_the_modalities_of_one_tower() -> None:
    spec = make_spec({"text": tower(extend_vocabulary={"speech": 12})})
    assert [str(task) for task in linked_tasks(spec)] == ["text -> speech", "speech -> text"]


def test_a_wrong_extension_is_told() -> None:
    def told(extend: object) -> str:
        data = {"name": "tiny", "towers": {"text": tower(extend_vocabulary=extend), "speech": tower()}}
        _, complaints = check_spec(data)
        return "; ".join(f"{'.'.join(map(str, place))}: {message}" for place, message in complaints)

    assert "towers.text.extend_vocabulary.speech: 'speech' is a tower; expected a new name" in told({"speech": 5})
    assert "begin and end are 1 and 1; expected two different ids below 5" in told(
        {"a": {"size": 5, "begin": 1, "end": 1}}
    )
    assert "begin and end are 3 and 9" in told({"a": {"size": 5, "end": 9}})
    assert "extend_vocabulary.a" in told({"a": 1})
    assert told({"a": 5}) == ""
