"""``zippkit init``: what it writes is sound, trains as it stands, and never takes the place of what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from helpers.tiny_runs import DEMO
from zippkit.cli.new_project import new_project
from zippkit.data.manifest import read_dataset_manifest
from zippkit.errors import ZippkitError
from zippkit.loading import load_recipe, load_spec

LLAMA = (
    '{"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 9,'
    ' "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}'
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(LLAMA)
    return tmp_path / "model"


def test_vocabularies_come_from_the_dataset(tmp_path: Path) -> None:
    new_project(tmp_path / "mine", ["text=decoder", "speech=decoder", "speech.dim=64"], DEMO / "data")
    recipe = load_recipe(tmp_path / "mine" / "recipe.yaml")
    columns = read_dataset_manifest(DEMO / "data").modalities
    for name, tower in recipe.spec.towers.items():
        assert tower.settings.vocab_size == columns[name].vocab_size
        assert tower.frame is not None and (tower.frame.begin, tower.frame.end) == (
            columns[name].begin,
            columns[name].end,
        )
    assert recipe.data.samefile(DEMO / "data")
    assert (recipe.spec.towers["speech"].settings.dim, recipe.spec.towers["text"].settings.dim) == (64, 256)
    assert set(recipe.pretrain) == {"text", "speech"}
    assert {str(task) for task in recipe.tasks()} == {"speech -> text", "text -> speech"}


def test_a_folder_of_a_model_is_frozen_and_not_pretrained(tmp_path: Path, model: Path) -> None:
    new_project(tmp_path / "mine", [f"text={model}", "speech=decoder"])
    recipe = load_recipe(tmp_path / "mine" / "recipe.yaml")
    text = recipe.spec.towers["text"]
    assert (text.kind, text.freeze, list(recipe.pretrain)) == ("hf_causal_lm", True, ["speech"])
    assert yaml.safe_load((tmp_path / "mine" / "spec.yaml").read_text())["towers"]["text"]["config"] == {
        "path": "../model"
    }
    assert [(link.target, link.every) for link in recipe.spec.links] == [("text", 3), ("speech", 1)]


@pytest.mark.parametrize("file", ["spec.yaml", "recipe.yaml"])
def test_every_comment_is_a_key_that_may_be_written(tmp_path: Path, file: str) -> None:
    new_project(tmp_path / "mine", ["text=decoder", "speech=decoder"], DEMO / "data")
    path = tmp_path / "mine" / file
    text = path.read_text()
    hints = re.findall(r"^ *# +(\w+: .*)  # .+$", text, re.MULTILINE)
    assert len(hints) > 5 and max(map(len, text.splitlines())) <= 120
    # A link's keys stand below the last one, whose braces leave no room for them.
    keys = [hint for hint in hints if not re.match(r"source|projection", hint)]
    for key in keys:
        changed = re.sub(rf"^( *)# {re.escape(key)}  #", rf"\1{key}  #", text, count=1, flags=re.MULTILINE)
        assert changed != text
        text = changed
        path.write_text(text)
        (load_spec if file == "spec.yaml" else load_recipe)(path)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ([], "init: name the towers, as in: zippkit init mine text=path/to/model speech=decoder"),
        (["text"], "init: got 'text'; expected name=KIND or name=FOLDER"),
        (["speech.dim=3"], "init: got 'speech.dim=3'; expected name=KIND"),
        (["text=decodr"], "no tower of kind 'decodr' is registered; did you mean 'decoder'?"),
        (["text=decoder", "text.n_hads=3"], "towers.text.config.n_hads: unknown key 'n_hads'; did you mean 'n_heads'?"),
        (["Text=decoder"], "towers.Text: string should match pattern"),
        (["text=EMPTY"], "no model is there; expected a Hugging Face folder with config.json"),
        (["text=STRANGE"], "a 'zebra' model, which no kind of tower runs"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, named: list[str], message: str) -> None:
    for name in ("EMPTY", "STRANGE"):
        (tmp_path / name).mkdir()
    (tmp_path / "STRANGE" / "config.json").write_text('{"model_type": "zebra"}')
    named = [re.sub("EMPTY|STRANGE", lambda found: str(tmp_path / found[0]), word) for word in named]
    with pytest.raises(ZippkitError, match=re.escape(message)):
        new_project(tmp_path / "mine", named)
    assert not list(tmp_path.glob("mine/*"))


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(ZippkitError, match="exists already; choose another folder"):
        new_project(tmp_path, ["text=decoder"])
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]
