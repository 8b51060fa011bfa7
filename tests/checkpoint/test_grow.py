"""Growing: a composition starts from what another one has learnt, and the old parts compute what they computed."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import zippkit
import zippkit.training.phase_run
from helpers.compositions import link, make_spec, randomise, tower
from helpers.tiny_runs import WORDS, copied, finished_run, spec, tiny_recipe, write_data, write_recipe
from helpers.tiny_runs import examples as examples_of
from helpers.tiny_runs import zippkit as command
from zippkit.batch.batch import Segment
from zippkit.composition import Composition, load
from zippkit.data.dataset import Example
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.text import train_words
from zippkit.errors import CheckpointError, SpecError, ZippkitError
from zippkit.loading import load_recipe
from zippkit.model.weights import read_tensors, write_tensors
from zippkit.plan.parts import compare
from zippkit.training.run_folder import RunFolder
from zippkit.training.step import build_step
from zippkit.training.trainer import InterruptedRunError, train

pytestmark = pytest.mark.slow

START = ["zero_gates", "zero_outputs"]


def towers(**more: Any) -> dict[str, Any]:
    return {
        "text": tower(2, 8, freeze=True, input_projection={}),
        "speech": tower(2, 8, 30, input_projection={}),
        **more,
    }


def links(start: str, *more: tuple[str, str]) -> list[dict[str, Any]]:
    config = {"n_heads": 2, "ffn_mult": 2, "start": start}
    pairs = [("speech", "text"), ("text", "speech"), *more]
    return [link(source, target, every=1, config=config) for source, target in pairs]


def examples(names: list[list[str]], seed: int = 0) -> list[list[Segment]]:
    numbers = torch.Generator().manual_seed(seed)
    return [
        [Segment(name, torch.randint(0, 18, (3 + i,), generator=numbers)) for i, name in enumerate(row)]
        for row in names
    ]


OLD_ROWS = [["speech", "text"], ["text", "speech", "text"], ["text"], ["speech"]]


def trained(start: str) -> Composition:
    """Two towers that have learnt for a few steps, so that no link of theirs is the identity any more."""
    made = zippkit.compile(make_spec(towers(), links(start)))
    optimizer = torch.optim.Adam([p for p in made.model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        batch = made.collate(examples(OLD_ROWS, step))
        made.loss(made.model(batch), batch)["total"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return made


@torch.no_grad()
def logits(made: Composition, rows: list[list[str]]) -> dict[str, Tensor]:
    return made.model.eval()(made.collate(examples(rows)))


@pytest.mark.parametrize("start", START)
def test_a_third_tower_leaves_the_old_pair_bit_for_bit(tmp_path: Path, start: str) -> None:
    old = trained(start)
    old.save(tmp_path / "two")
    more = [("image", "text"), ("image", "speech"), ("text", "image")]
    three = make_spec(towers(image=tower(1, 8, 40)), links(start, *more))
    grown = load(tmp_path / "two", spec=three)
    expected = logits(old, OLD_ROWS)
    assert all(torch.equal(found, expected[name]) for name, found in logits(grown, OLD_ROWS).items())
    assert not torch.equal(logits(zippkit.compile(three), OLD_ROWS)["text"], expected["text"]), "it had learnt"
    # Rows of the old pair beside rows that have the new tower, which is read but changes nothing yet.
    mixed = logits(grown, [*OLD_ROWS, ["image", "speech", "text"], ["image"]])
    assert all(torch.equal(mixed[name][: len(expected[name])], expected[name]) for name in expected)


@pytest.mark.parametrize("start", START)
def test_the_old_pair_after_an_image_is_as_without_it(tmp_path: Path, start: str) -> None:
    """While the new links are the identity, an image in the row changes nothing, not even in the last bit."""
    old = trained(start)
    old.save(tmp_path / "two")
    three = make_spec(towers(image=tower(1, 8, 40)), links(start, ("image", "text"), ("image", "speech")))
    grown = load(tmp_path / "two", spec=three)
    [row] = examples([["speech", "text"]])
    with torch.no_grad():
        without = old.model.eval()(old.collate([row]))
        after = grown.model.eval()(grown.collate([[Segment("image", torch.tensor([1, 2])), *row]]))
    assert all(torch.equal(after[name], without[name]) for name in ("text", "speech"))
    randomise(grown.model.links["image_to_text"])
    with torch.no_grad():
        woken = grown.model.eval()(grown.collate([[Segment("image", torch.tensor([1, 2])), *row]]))
    assert not torch.equal(woken["text"], without["text"]), "the link would be heard if it were not the identity"


def test_what_becomes_of_every_part_is_told(tmp_path: Path) -> None:
    trained("zero_gates").save(tmp_path / "two")
    other = towers(image=tower(1, 8, 40))
    other["speech"].pop("input_projection")
    grown = load(tmp_path / "two", spec=make_spec(other, links("zero_gates", ("image", "text"))[::2]))
    assert grown.transfer is not None
    assert grown.transfer.taken == ("input_projections.text", "links.speech_to_text", "towers.speech", "towers.text")
    assert grown.transfer.new == ("links.image_to_text", "towers.image")
    assert grown.transfer.left_out == ("input_projections.speech", "links.text_to_speech")
    assert "left out: input_projections.speech, links.text_to_speech" in str(grown.transfer)
    assert load(tmp_path / "two").transfer is None


@pytest.mark.parametrize("start", START)
def test_a_link_can_be_taken_out(tmp_path: Path, start: str) -> None:
    old = trained(start)
    old.save(tmp_path / "two")
    less = load(tmp_path / "two", spec=make_spec(towers(), links(start)[:1]))
    rows = [["speech", "text"], ["speech"]]
    assert torch.equal(logits(less, rows)["text"], logits(old, rows)["text"]), "text still listens to speech"
    assert {name.split(".")[1] for name in less.model.state_dict() if name.startswith("links")} == {"speech_to_text"}
    # Alone, no row is multimodal: there is no input projection to pass.
    speech = {key: value for key, value in towers()["speech"].items() if key != "input_projection"}
    alone = load(tmp_path / "two", spec=make_spec({"speech": speech}))
    with torch.no_grad():
        expected = old.model.eval()(old.collate(examples([["speech"]]), multimodal=False))["speech"]
    assert torch.equal(logits(alone, [["speech"]])["speech"], expected)


def test_new_parts_depend_on_the_seed_alone(tmp_path: Path) -> None:
    trained("zero_gates").save(tmp_path / "two")
    three = make_spec(towers(image=tower(1, 8, 40)), links("zero_gates", ("image", "text")))
    grown = [load(tmp_path / "two", spec=three, seed=seed).model.state_dict() for seed in (0, 0, 1)]
    name = "towers.image.embed_tokens.weight"
    assert torch.equal(grown[0][name], grown[1][name])
    assert not torch.equal(grown[0][name], grown[2][name])
    assert torch.equal(grown[0]["towers.speech.norm.weight"], grown[2]["towers.speech.norm.weight"])


def changed(**change: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A composition whose parts are called as the old one's."""
    made, joined = towers(), links("zero_gates")
    for name, value in change.items():
        if name in made:
            made[name] |= value
        else:
            joined[0] |= value
    return made, joined


@pytest.mark.parametrize(
    ("composition", "told"),
    [
        (changed(speech=tower(3, 8, 30)), "towers.speech: config.n_layers is 2 there and 3 here"),
        (changed(speech={"frame": {"begin": 0, "end": 1}}), "towers.speech: config.frame.begin is 28 there and 0 here"),
        (
            changed(text={"input_projection": {"depth": 1}}),
            "input_projections.text: depth is 2 there and 1 here; make them the same, or give this one another name",
        ),
        (changed(link={"every": 2}), "links.speech_to_text: sites is [(1, 1), (2, 2)] there and [(2, 2)] here"),
        (changed(link={"projection": {"depth": 1}}), "links.speech_to_text: projection.depth is 3 there and 1 here"),
        (changed(link={"config": {"n_heads": 4}}), "links.speech_to_text: config.n_heads is 2 there and 4 here"),
        (
            changed(link={"from": "text", "into": "speech", "name": "speech_to_text"}),
            "links.speech_to_text: from is 'speech' there and 'text' here",
        ),
    ],
)
def test_a_part_of_another_kind_is_refused_by_name(tmp_path: Path, composition: Any, told: str) -> None:
    trained("zero_gates").save(tmp_path / "two")
    with pytest.raises(CheckpointError) as failure:
        load(tmp_path / "two", spec=make_spec(*composition))
    assert told in str(failure.value)
    assert str(tmp_path / "two") in str(failure.value)


def test_all_misfits_are_told_at_once_and_other_words_for_the_same_are_none() -> None:
    old = make_spec(towers(), links("zero_gates"))
    wrong = make_spec(*changed(speech=tower(3, 8, 30), text=tower(2, 8, 21), link={"projection": {"depth": 1}}))
    assert len(compare(old, wrong)[1]) >= 3
    explicit = links("zero_gates")
    explicit[0] |= {"every": None, "sites": [{"from": 1, "into": 1}, {"from": 2, "into": 2}]}
    assert compare(old, make_spec(towers(), explicit))[1] == []
    thawed = towers() | {"text": tower(2, 8, input_projection={})}
    assert compare(old, make_spec(thawed, links("zero_gates")))[1] == [], "what is frozen may change"


def test_towers_that_have_become_different_do_not_become_one(tmp_path: Path) -> None:
    apart = make_spec({"left": tower(1, 8), "right": tower(1, 8)})
    one = make_spec({"left": tower(1, 8), "right": {"share_with": "left"}})
    assert compare(apart, one)[1] == ["towers.right: the weights are 'left''s here, but not there"]
    assert compare(one, apart)[1] == compare(one, one)[1] == []
    zippkit.compile(one).save(tmp_path / "one")
    state = load(tmp_path / "one", spec=apart).model.state_dict()
    assert torch.equal(state["towers.left.norm.weight"], state["towers.right.norm.weight"])


def test_adapters_are_taken_with_their_tower(tmp_path: Path) -> None:
    lora = {"rank": 2, "pattern": "layers.*.self_attn.*"}
    adapted = {"text": tower(1, 8, freeze=True, lora=lora), "speech": tower(1, 8, 30)}
    old = zippkit.compile(make_spec(adapted, links("zero_gates")))
    randomise(old.model.adapters)
    old.save(tmp_path / "two")
    grown = load(tmp_path / "two", spec=make_spec({**adapted, "image": tower(1, 8)}, links("zero_gates")))
    assert grown.transfer is not None
    assert "adapters.text" in grown.transfer.taken
    assert torch.equal(logits(grown, [["text"]])["text"], logits(old, [["text"]])["text"])
    plain = load(tmp_path / "two", spec=make_spec(adapted | {"text": tower(1, 8, freeze=True)}, links("zero_gates")))
    assert plain.transfer is not None
    assert plain.transfer.left_out == ("adapters.text",)
    other = adapted | {"text": tower(1, 8, freeze=True, lora={"rank": 4, "pattern": "*self_attn*"})}
    with pytest.raises(CheckpointError, match=r"adapters.text: lora.rank is 2 there and 4 here"):
        load(tmp_path / "two", spec=make_spec(other, links("zero_gates")))


def test_only_towers_that_are_taken_need_their_sources(tmp_path: Path) -> None:
    run = copied(finished_run(), tmp_path / "copy")
    weights = run / "towers" / "text" / "model.safetensors"
    write_tensors(weights, {name: tensor + 1 for name, tensor in read_tensors(weights).items()})
    settings = load(finished_run()).spec.towers
    alone = make_spec({"speech": settings["speech"].model_dump(exclude_none=True)})
    assert load(run, spec=alone).sources.keys() == {"speech"}
    both = make_spec({name: settings[name].model_dump(exclude_none=True) for name in settings})
    with pytest.raises(CheckpointError, match="tower 'text' is another one"):
        load(run, spec=both)
    assert load(finished_run(), spec=both).sources["text"] == finished_run() / "towers" / "text"


def three_towers() -> dict[str, Any]:
    """The tiny run's spec, and a tower that reads text."""
    grown = spec()
    grown["towers"]["notes"] = tower(1, 16, 7, frame={"begin": 1, "end": 2})
    grown["links"].append(link("text", "notes", every=1))
    return grown


def grown_recipe(folder: Path, train: dict[str, Any] | None = None, **more: Any) -> Path:
    """Its data have notes besides: each word's id once more."""
    splits = {name: [noted(example) for example in examples_of(n, 0)] for name, n in (("train", 24), ("test", 6))}
    write_dataset(folder / "data", splits, {"text": train_words(WORDS)})
    return write_recipe(folder, train, spec=three_towers(), **{"start_from": str(finished_run()), **more})


def noted(example: Example) -> Example:
    notes = np.array([3 + WORDS.index(word) for word in str(example.items["text"]).split()])
    return replace(example, items={**example.items, "notes": notes})


def test_a_run_starts_from_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(load_recipe(grown_recipe(tmp_path, {"steps": 1, "learning_rate": 1e-9})), tmp_path / "run")
    told = capsys.readouterr().err
    assert f"started from {finished_run()}" in told
    assert "taken: links.speech_to_text, towers.speech, towers.text" in told
    assert "new: links.text_to_notes, towers.notes" in told
    old, new = load(finished_run()).model.state_dict(), load(tmp_path / "run").model.state_dict()
    for name, tensor in old.items():
        assert torch.allclose(new[name], tensor, atol=1e-6), name
    assert torch.equal(new["towers.text.norm.weight"], old["towers.text.norm.weight"])


def test_a_grown_run_needs_the_other_one_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the frozen tower that it took, byte for byte, and goes on without what it started from."""
    two = copied(finished_run(), tmp_path / "two")
    whole = load_recipe(grown_recipe(tmp_path, {"steps": 6}, start_from=str(two)))
    train(whole, tmp_path / "whole")
    digest = (two / "towers" / "text" / "model.safetensors").read_bytes()
    half = whole.train.model_copy(update={"save_every": 4})
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        stop_after(patch, 3)
        train(whole.model_copy(update={"train": half}), tmp_path / "run")
    two.rename(tmp_path / "gone")
    train(whole.model_copy(update={"train": half}), tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    found, expected = load(tmp_path / "moved").model.state_dict(), load(tmp_path / "whole").model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert (tmp_path / "moved" / "towers" / "text" / "model.safetensors").read_bytes() == digest
    assert RunFolder(tmp_path / "moved").recipe().start_from is not None, "a started run is read without it"


def stop_after(patch: pytest.MonkeyPatch, n_steps: int) -> None:
    """Ask the run to stop, as a signal does."""

    def build(*arguments: Any) -> Any:
        step, taken = build_step(*arguments), [0]

        def watched(batch: Any) -> Any:
            taken[0] += 1
            if taken[0] == n_steps:
                os.kill(os.getpid(), signal.SIGINT)
            return step(batch)

        return watched

    patch.setattr(zippkit.training.phase_run, "build_step", build)


def problems(file: Path) -> str:
    with pytest.raises(SpecError) as failure:
        load_recipe(file)
    return str(failure.value)


def test_mistakes_in_start_from_are_found_before_anything_is_run(tmp_path: Path) -> None:
    phase = {"steps": 1}
    told = problems(grown_recipe(tmp_path, pretrain={"text": phase, "notes": phase}))
    assert f"pretrain.text: tower 'text' comes trained from {finished_run()}; remove one of the two" in told
    assert "pretrain.notes" not in told
    told = problems(write_recipe(tmp_path, start_from="nowhere"))
    assert "start_from: not a finished run or a checkpoint: " in told
    assert "nowhere" in told
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "recipe.yaml").write_text("name: tiny")
    assert "this run is not finished" in problems(write_recipe(tmp_path, start_from="unfinished"))
    other = spec()
    other["towers"]["speech"]["config"]["n_layers"] = 3
    told = problems(write_recipe(tmp_path, spec=other, start_from=str(finished_run())))
    assert "start_from: towers.speech: config.n_layers is 2 there and 3 here" in told


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    write_data(tmp_path / "data", words=["zero", "one", "three", "two"])
    recipe = tiny_recipe(tmp_path, start_from=str(finished_run()))
    with pytest.raises(ZippkitError, match="tower 'text' was trained with another tokenizer than that of"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_relative_start_is_beside_the_recipe_and_checked_without_torch(tmp_path: Path) -> None:
    run = copied(finished_run(), tmp_path / "two")
    file = write_recipe(tmp_path, spec=three_towers(), start_from="two/run")
    assert load_recipe(file).start_from == run
    said = command("check", "recipe.yaml", cwd=tmp_path)
    assert (said.returncode, said.stdout) == (0, "recipe.yaml: tiny is sound\n")
