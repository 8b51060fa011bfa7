"""Several datasets in one recipe: who serves what, how often, and what is refused before a step is taken."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.interrupts import assert_same_run, killed
from helpers.tiny_runs import WORDS, examples, spec, tiny_recipe, write_data, zippkit
from zippkit.data.dataset import Dataset, Example
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.text import train_words
from zippkit.errors import DataError, SpecError, ZippkitError
from zippkit.evaluation.evaluate import evaluate
from zippkit.spec.recipe import Recipe
from zippkit.training.metrics import read_metrics
from zippkit.training.mixture import Mixture
from zippkit.training.run_data import dev_sources, mixtures, open_datasets
from zippkit.training.run_folder import RunFolder
from zippkit.training.trainer import train

pytestmark = pytest.mark.slow

BOTH = [
    {"kind": "gated_cross_attention", "from": a, "into": b, "every": 1, "config": {"n_heads": 2}}
    for a, b in (("speech", "text"), ("text", "speech"))
]


def text_only(folder: Path, n: int = 20) -> Dataset:
    rows = [Example(each.id, "", 0.0, {"text": each.items["text"]}) for each in examples(n, 7)]
    return write_dataset(folder, {"train": rows}, {"text": train_words(WORDS)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of pairs, of 24 and of 40 examples, and one of text."""
    made = tmp_path_factory.mktemp("corpora")
    write_data(made / "heard", 24)
    write_data(made / "read", 40)
    text_only(made / "books")
    return made


def recipe(folder: Path, data: dict[str, Any], train: dict[str, Any] | None = None, **more: Any) -> Recipe:
    given = {"spec": spec(links=BOTH), "data": data, **more}
    return tiny_recipe(folder, {"tasks": None, "steps": 8, **(train or {})}, **given)


def mixed(recipe: Recipe, label: str = "train") -> Mixture:
    return mixtures(recipe, open_datasets(recipe))[label]


def served(mixture: Mixture) -> list[tuple[str, int]]:
    return [(str(part.task), len(part)) for part in mixture.parts]


def test_datasets_are_mixed_by_size_and_one_without_the_modalities_serves_nothing(folder: Path) -> None:
    found = mixed(recipe(folder, {"heard": "heard", "read": {"path": "read"}, "books": "books"}))
    listen, speak = "speech -> text", "text -> speech"
    assert served(found) == [(listen, 24), (speak, 24), (listen, 40), (speak, 40)]
    assert found.shares is None, "epochs of everything, as with one dataset"
    assert found.order(4, 0).batches_per_epoch == 6 + 6 + 10 + 10


def test_each_dataset_has_tasks_and_a_weight_of_its_own(folder: Path) -> None:
    data = {
        "heard": {"path": "heard", "weight": 1.0, "tasks": ["speech -> text"]},
        "read": {"path": "read", "weight": 1.26, "tasks": [{"task": "text -> speech", "weight": 3.0}, "speech"]},
    }
    found = mixed(recipe(folder, data))
    assert served(found) == [("speech -> text", 24), ("text -> speech", 40), ("speech", 40)]
    assert found.shares == pytest.approx([1.0, 1.26 * 3 / 4, 1.26 / 4])
    order = found.order(4, 0)
    tasks = [order.draw(step).task for step in range(1000)]
    assert [tasks.count(task) for task in range(3)] == pytest.approx([442, 418, 139], abs=1)


def test_a_temperature_evens_sizes_out(folder: Path) -> None:
    found = mixed(recipe(folder, {"heard": "heard", "read": "read"}, temperature=5.0))
    assert found.shares == pytest.approx([24**0.2, 24**0.2, 40**0.2, 40**0.2])


def test_a_phase_chooses_its_datasets(folder: Path) -> None:
    data = {"pairs": "heard", "books": {"path": "books", "tasks": []}, "read": "read"}
    made = recipe(folder, data, {"data": ["pairs"]}, pretrain={"text": {"steps": 2, "data": "books"}})
    assert served(mixed(made, "pretrain.text")) == [("text", 20)]
    assert served(mixed(made)) == [("speech -> text", 24), ("text -> speech", 24)]
    whole = recipe(folder, data, pretrain={"text": {"steps": 2}})
    assert served(mixed(whole, "pretrain.text")) == [("text", 24), ("text", 20), ("text", 40)]


def test_each_dataset_has_a_dev_split_of_its_own(folder: Path) -> None:
    data = {"heard": {"path": "heard", "dev": "train"}, "read": "read", "books": "books"}
    made = recipe(folder, data, validation={"evaluate_every": 2, "split": "test"})
    looked_at = [(each.dataset.path.name, each.split) for each in dev_sources(made, open_datasets(made))]
    assert looked_at == [("heard", "train"), ("read", "test")]
    missing = recipe(folder, {**data, "read": {"path": "read", "dev": "dve"}}, validation={"evaluate_every": 2})
    with pytest.raises(DataError, match=r"validation.split: .*read has no split 'dve'; expected one of train, test"):
        train(missing, folder / "run")


def test_a_run_of_several_datasets_is_trained_scored_and_kept(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "in")
    data = {"heard": {"path": "heard", "tasks": ["speech -> text"]}, "read": {"path": "read"}, "books": "books"}
    made = recipe(tmp_path / "in", data, pretrain={"text": {"steps": 2, "batch_size": 4, "data": "books"}})
    train(made, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert {line["phase"] for line in read_metrics(run.path)} == {"pretrain.text", "train"}
    assert set(run.tokenizers()) == {"text"}
    assert set(run.read_json("inputs.json")) == {"data.heard.path", "data.read.path", "data.books"}
    found = evaluate(run.path)
    assert [(each.split, [task.task for task in each.tasks]) for each in (found, *found.more)] == [
        ("heard/test", ["speech -> text"]),
        ("read/test", ["speech -> text"]),
    ]
    (tmp_path / "in" / "read").rename(tmp_path / "in" / "moved")
    moved = recipe(
        tmp_path / "in", data | {"read": {"path": "moved"}}, pretrain=made.model_dump(exclude_unset=True)["pretrain"]
    )
    moved = moved.model_copy(update={"pretrain": made.pretrain})
    train(moved, run.path)
    assert run.recipe().sources["read"].path.samefile(tmp_path / "in" / "moved"), "known by its hash"
    write_data(tmp_path / "in" / "other", 25)
    other = moved.model_copy(update={"data": {**moved.sources, "read": tmp_path / "in" / "other"}})
    with pytest.raises(ZippkitError, match="holds the run of another recipe"):
        train(other, run.path)
    assert zippkit("report", run.path).returncode == 0


def test_every_dataset_that_is_missing_or_of_another_tokenizer_is_named(folder: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "words", words=[*WORDS[:-1], "zero"])
    data = {"heard": "heard", "words": str(tmp_path / "words"), "lost": "lost", "gone": {"path": "gone"}}
    with pytest.raises(DataError) as caught:
        train(recipe(folder, data), tmp_path / "run")
    told = str(caught.value).splitlines()
    assert len(told) == 3
    assert [name in line for name, line in zip(("lost", "gone", "another"), [*told[:2], "another"], strict=True)]
    assert "text holds text of tokenizer" in told[2]
    assert "prepare both with the same tokenizer" in told[2]
    assert not (tmp_path / "run").exists()


def test_what_no_dataset_serves_is_told_of_every_phase_at_once(folder: Path, tmp_path: Path) -> None:
    data = {"books": "books", "more": {"path": "books"}}
    made = recipe(folder, data, {"data": "books"}, pretrain={"speech": {"steps": 1, "data": "more"}})
    with pytest.raises(DataError) as caught:
        train(made, tmp_path / "run")
    told = str(caught.value)
    assert "pretrain.speech: no dataset serves the task 'speech'" in told
    assert "train: no dataset serves the task 'speech -> text'" in told
    assert "train: no dataset serves the task 'text -> speech'" in told
    assert "books has text" in told


def test_a_weight_for_some_datasets_only(folder: Path, tmp_path: Path) -> None:
    made = recipe(folder, {"heard": {"path": "heard", "weight": 2.0}, "read": "read"})
    with pytest.raises(DataError, match=r"train: data.heard has a weight and data.read none; give one to each dataset"):
        train(made, tmp_path / "run")


def test_mistakes_in_the_recipe_are_told_at_once_with_their_lines(folder: Path) -> None:
    data = {
        "heard": {"path": "heard", "weight": 0.0, "tasks": ["speech -> txt"]},
        "read": {"path": "read", "weight": 0.0, "task": ["speech -> text"]},
    }
    wrong = {"data": ["reed"], "tasks": [{"task": "speech -> text", "weight": 0.0}, {"task": "text", "los": ["text"]}]}
    with pytest.raises(SpecError) as caught:
        recipe(folder, data, wrong, temperature=2.0, pretrain={"text": {"steps": 1, "data": "book"}})
    told = {problem.key: problem.message for problem in caught.value.problems}
    assert told["data.read.task"] == "unknown key 'task'; did you mean 'tasks'?"
    assert told["data.heard.tasks[0]"] == "no tower is called 'txt'; did you mean 'text'?"
    assert told["train.data"] == "no dataset is called 'reed'; did you mean 'read'?"
    assert told["train.tasks[1].los"] == "unknown key 'los'; did you mean 'loss'?"
    assert told["pretrain.text.data"] == "no dataset is called 'book'; valid: heard, read"
    assert told["temperature"] == "the datasets' weights say already how they are mixed; remove one of the two"
    assert "every dataset has weight 0" in told["data"]


def test_a_task_that_no_dataset_names(folder: Path) -> None:
    data = {"heard": {"path": "heard", "tasks": ["speech -> text"]}, "books": {"path": "books", "tasks": []}}
    with pytest.raises(SpecError) as caught:
        recipe(folder, data, {"tasks": ["speech -> text", "text -> speech"], "data": ["heard", "books"]})
    told = [f"{problem.key}: {problem.message}" for problem in caught.value.problems]
    assert told == [
        "train.tasks[1]: no dataset of this phase has the task 'text -> speech'; add it to the `tasks` of one",
        "train.data: dataset 'books' has none of this phase's tasks; leave it out",
    ]


@pytest.mark.parametrize("changes", [60, 110])
def test_all_of_it_at_once_is_killed_and_goes_on_to_the_bit(folder: Path, tmp_path: Path, changes: int) -> None:
    data = {
        "heard": {"path": "heard", "weight": 2.0, "dev": "test", "tasks": ["speech -> text", "speech"]},
        "read": {"path": "read", "weight": 1.0, "dev": "test", "tasks": ["text -> speech"]},
        "books": {"path": "books", "weight": 1.0, "tasks": []},
    }
    train_ = {"steps": 12, "batch_size": 8, "accumulate": 2, "pack": True, "save_every": 3}
    more = {"optimizer": "adamw", "weight_decay": 0.01, "schedule": "wsd", "warmup": 2}
    made = recipe(
        folder,
        data,
        train_ | more,
        pretrain={"text": {"data": "books", "steps": 4, "pack": True, "save_every": 2, "batch_size": 8}},
        validation={"evaluate_every": 4, "best": {"metric": "text_loss"}, "model": "best", "patience": 9},
    )
    train(made, tmp_path / "whole")
    assert killed(made, tmp_path / "run", changes=changes)
    train(made, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    found, expected = (sorted((tmp_path / name / "model").rglob("*.safetensors")) for name in ("run", "whole"))
    assert [file.read_bytes() for file in found] == [file.read_bytes() for file in expected] != []


def test_what_a_dataset_leaves_out_of_a_task_is_what_the_phase_says_of_it(folder: Path) -> None:
    """Its own words go before the phase's, and are nobody else's."""
    plain, own = ["speech -> text"], [{"task": "speech -> text", "loss": ["text"]}]
    data = {"heard": {"path": "heard", "tasks": plain}, "read": {"path": "read", "tasks": own}}
    phase = {"tasks": [{"task": "speech -> text", "weight": 2.0, "mask_prompt": False}]}

    def said(made: Recipe) -> dict[str, tuple[float, bool, list[str] | None]]:
        (phase,) = made.main_phases
        return {use.dataset: (use.line.weight, use.line.mask_prompt, use.line.loss) for use in made.uses(phase.phase)}

    assert said(recipe(folder, data, phase)) == {"heard": (2.0, False, None), "read": (2.0, True, ["text"])}
    whole = {"read": {"path": "read", "tasks": phase["tasks"]}, "heard": "heard"}
    found = said(recipe(folder, whole))
    assert found == {"read": (2.0, False, None), "heard": (1.0, True, None)}, "what another dataset says is not its own"
