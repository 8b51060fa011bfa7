"""Recipes: every shipped one is sound, every mistake is told with its line, and the rest follows from a spec."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny_runs import spec, write_recipe
from zippkit.errors import SpecError, ZippkitError
from zippkit.loading import load_any, load_recipe, load_spec
from zippkit.model.build import build_model
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.derived_recipe import (
    LEARNING_RATE_FROZEN,
    LEARNING_RATE_UNFROZEN,
    derived_recipe,
    dump,
    learning_rates,
    single_tower,
)
from zippkit.spec.part_kinds import group_names
from zippkit.spec.phase import Phase, Stage
from zippkit.spec.recipe import Recipe
from zippkit.spec.recipe_checks import recipe_complaints
from zippkit.spec.task import Task

ROOT = Path(__file__).parents[2]
YAML = [path.relative_to(ROOT) for path in (ROOT / "recipes").rglob("*.yaml")]
SHIPPED = sorted(path.as_posix() for path in YAML if path.parent != Path("recipes/paper"))
"""Specs and recipes; experiments have a test of their own."""

RECIPE = """\
name: tiny
spec: parts/spec.yaml
data: parts
pretrain:
  text: {steps: 10}
train:
  tasks: [speech -> text]
  steps: 20
evaluate: {split: test}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sound recipe that names its spec by path."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "spec.yaml").write_text(yaml.safe_dump(spec(), sort_keys=False))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def problems(file: Path, text: str, overrides: list[str] | None = None) -> list[str]:
    """What is told about a recipe, with the folder left out."""
    file.write_text(text)
    with pytest.raises(SpecError) as failure:
        load_recipe(file, overrides or [])
    return str(failure.value).replace(f"{file.parent}/", "").split("\n")


def compiled_spec(**more: Any) -> CompositionSpec:
    return CompositionSpec.model_validate(spec(**more))


def test_recipes_are_shipped() -> None:
    assert {"recipes/demo/spec.yaml", "recipes/demo/recipe.yaml"} <= set(SHIPPED)


@pytest.mark.parametrize("path", SHIPPED)
def test_every_shipped_yaml_is_sound(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    loaded = load_any(path)
    spec = loaded.spec if isinstance(loaded, Recipe) else loaded
    assert len(spec.modalities) > 1
    if isinstance(loaded, Recipe):
        assert loaded.tasks()


def test_every_problem_is_told_at_once_with_its_line(file: Path) -> None:
    text = """\
name: Tiny
spec: parts/spec.yaml
dta: parts
seed: -1
device: gpu
train:
  tasks: [speech -> text]
  stepz: 20
  precision: fp16
  learning_rates: {towers.speech: -0.1}
  betas: [0.9, 1.0]
evaluate: {splt: test}
"""
    assert problems(file, text) == [
        "recipe.yaml:1: data: required key 'data' is missing",
        "recipe.yaml:1: name: string should match pattern '^[a-z][a-z0-9_]*$', got 'Tiny'",
        "recipe.yaml:3: dta: unknown key 'dta'; did you mean 'data'?",
        "recipe.yaml:4: seed: expected greater than or equal to 0, got -1",
        "recipe.yaml:5: device: expected 'auto', 'cpu', 'cuda', 'xla' or 'tpu', got 'gpu'",
        "recipe.yaml:6: train.steps: required key 'steps' is missing",
        "recipe.yaml:8: train.stepz: unknown key 'stepz'; did you mean 'steps'?",
        "recipe.yaml:9: train.precision: expected 'fp32' or 'bf16', got 'fp16'",
        "recipe.yaml:10: train.learning_rates.towers.speech: expected greater than 0, got -0.1",
        "recipe.yaml:11: train.betas[1]: expected less than 1, got 1.0",
        "recipe.yaml:12: evaluate.splt: unknown key 'splt'; did you mean 'split'?",
    ]


def test_every_problem_between_the_phases_and_the_spec_is_told(file: Path) -> None:
    text = """\
name: tiny
spec: parts/spec.yaml
data: parts
pretrain:
  txt: {steps: 1}
  text: {steps: 1, tasks: [speech], learning_rates: {links.speech_to_text: 1e-3}}
train:
  tasks:
    - speech -> text
    - speach -> text
    - speech ->
  steps: 20
  learning_rates: {towers.text: 1e-3, towers.speach: 1e-3}
evaluate: {tasks: [speech -> txt]}
"""
    assert problems(file, text) == [
        "recipe.yaml:5: pretrain.txt: no tower is called 'txt'; did you mean 'text'?",
        "recipe.yaml:6: pretrain.text.learning_rates.links.speech_to_text: no such parameter group; valid: towers.text",
        "recipe.yaml:6: pretrain.text.tasks: pre-training is on the tower's own modality; expected [text]",
        "recipe.yaml:10: train.tasks[1]: no tower is called 'speach'; did you mean 'speech'?",
        "recipe.yaml:11: train.tasks[2]: no tower is called ''; valid: speech, text",
        "recipe.yaml:13: train.learning_rates.towers.speach: no such parameter group; did you mean 'towers.speech'?",
        "recipe.yaml:14: evaluate.tasks[0]: no tower is called 'txt'; did you mean 'text'?",
    ]


def test_problems_of_the_recipe_and_of_its_spec_are_told_in_one_wave(file: Path) -> None:
    inner = file.parent / "parts" / "spec.yaml"
    made = spec()
    made["towers"]["text"]["freeze"] = "maybe"
    made["towers"]["speech"]["config"]["n_heads"] = 3
    made["links"][0]["from"] = "speach"
    inner.write_text(yaml.safe_dump(made, sort_keys=False))
    text = """\
name: tiny
spec: parts/spec.yaml
data: parts
seed: 0
seed: 1
pretrain:
  txt: {steps: 1}
  speech: {stepz: 1, tasks: [text]}
train:
  tasks: [speech -> text, speech -> txt]
  steps: zero
  learning_rates: {links.speech_to_text: 1e-3}
"""
    told = problems(file, text)
    assert [line for line in told if line.startswith("recipe.yaml")] == [
        "recipe.yaml:5: seed: duplicate key 'seed', first given on line 4; keep one of them",
        "recipe.yaml:7: pretrain.txt: no tower is called 'txt'; did you mean 'text'?",
        "recipe.yaml:8: pretrain.speech.steps: required key 'steps' is missing",
        "recipe.yaml:8: pretrain.speech.stepz: unknown key 'stepz'; did you mean 'steps'?",
        "recipe.yaml:8: pretrain.speech.tasks: pre-training is on the tower's own modality; expected [speech]",
        "recipe.yaml:10: train.tasks[1]: no tower is called 'txt'; did you mean 'text'?",
        "recipe.yaml:11: train.steps: expected a valid integer, got 'zero'",
    ]
    assert [line.split(": ")[1] for line in told if not line.startswith("recipe.yaml")] == [
        "towers.text.freeze",
        "towers.speech.config",
        "links[0].from",
    ]


ANYTHING = st.sampled_from(
    [None, True, 0, -1, 2.5, "x", "text", "speech -> text", "", [], ["x"], [3], {}, {"x": 1}, "kind"]
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_misshapen_recipe_is_sound_or_told(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    recipe = {
        "name": "tiny",
        "spec": spec(),
        "data": ".",
        "seed": 1,
        "pretrain": {"text": {"steps": 1, "tasks": ["text"]}},
    }
    recipe |= {"train": {"steps": 2, "tasks": ["speech -> text"], "learning_rates": {"towers.speech": 1e-3}}}
    recipe |= {"evaluate": {"split": "test", "tasks": ["speech -> text"], "sampling": {"text": {"beams": 2}}}}
    for _ in range(data.draw(st.integers(1, 3))):
        section: Any = recipe
        while True:
            keys = list(section) if isinstance(section, dict) else list(range(len(section)))
            key = data.draw(st.sampled_from([*keys, "more"] if isinstance(section, dict) else keys))
            inside = section[key] if key != "more" and section[key] else None
            if not isinstance(inside, (dict, list)) or data.draw(st.booleans()):
                break
            section = inside
        section[key] = data.draw(ANYTHING)
    file = tmp_path_factory.getbasetemp() / "misshapen.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    try:
        load_recipe(file)
    except SpecError as error:
        assert len({(problem.key, problem.message) for problem in error.problems}) == len(error.problems), "told once"


def test_a_spec_in_place_of_a_recipe(file: Path) -> None:
    place = file.parent / "parts" / "spec.yaml"
    with pytest.raises(SpecError, match=r"spec\.yaml:2: towers: a spec; expected a recipe, which `zippkit recipe .*`"):
        load_recipe(place)


@pytest.mark.parametrize(
    ("links", "task", "told"),
    [
        ("speech>text", "speech -> text", []),
        ("speech>text", "text", []),
        ("text>speech", "speech -> text", ["no link lets 'text' depend on 'speech'; add a link from it, or leave it"]),
        ("", "speech -> text", ["no link lets 'text' depend on 'speech'"]),
        ("speech>text image>text", "image -> speech -> text", []),
        # Through speech, which comes after the image; not through text, which comes before it.
        ("speech>text image>speech", "image -> speech -> text", []),
        ("speech>text image>speech", "speech -> image -> text", ["no link lets 'text' depend on 'image'"]),
        ("speech>text image>speech", "image -> text", ["no link lets 'text' depend on 'image'"]),
        ("speech>text", "image -> speech -> text", ["no link lets 'text' depend on 'image'"]),
        ("speech>text", "text -> speech -> text", ["an example has one 'text', so what is to be predicted is given"]),
        ("speech>text", "text -> text", ["an example has one 'text', so what is to be predicted is given"]),
        ("image~text", "image -> text", []),
        ("speech>text", "words -> text", []),
        ("speech>text", "speech -> words", []),
        ("", "speech -> words", ["no link lets 'words' depend on 'speech'"]),
        ("speech>text", "speech + text", ["`+` stands between simultaneous modalities; expected a link with `clock:"]),
        ("speech=text", "speech + text", []),
        ("speech>text", "speech -> [text, speech]", []),
        ("speech>text text>speech", "[text, speech]", []),
        ("text>speech", "image -> [text, speech]", ["no link lets 'text, speech' depend on 'image'; add a link"]),
        ("speech>text", "speech -> [speech, text]", ["an example has one 'speech', so what is to be predicted is"]),
        ("speech>text", "speech -> [text, text]", ["an example has one 'text', so what is to be predicted is given"]),
        ("speech>text", "speech -> [text, txt]", ["no tower is called 'txt'; did you mean 'text'?"]),
        ("speech>text", "interleaved", []),
    ],
)
def test_a_task_means_what_it_says(links: str, task: str, told: list[str]) -> None:
    towers = spec()["towers"] | {"image": spec()["towers"]["speech"]}
    towers["text"] = towers["text"] | {"extend_vocabulary": {"words": 5}}
    made: dict[str, list[dict[str, Any]]] = {"links": [], "contrastive": []}
    for source, sign, target in re.findall(r"(\w+)([>~=])(\w+)", links):
        ends = {"from": source, "into": target}
        if sign == "~":
            made["contrastive"].append(ends)
        else:
            clock = {"clock": "sync"} if sign == "=" else {}
            kind = {"kind": "gated_cross_attention", "every": 1, "config": {"n_heads": 2}}
            made["links"].append(ends | clock | kind)
    recipe = derived_recipe(compiled_spec(towers=towers, **made))
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"tasks": [task]})})
    found = recipe_complaints(recipe)
    assert [place for place, _ in found] == [("train", "tasks", 0)] * len(told)
    for (_, message), expected in zip(found, told, strict=True):
        assert message.startswith(expected)


def test_a_tower_has_weights_or_is_pre_trained(file: Path) -> None:
    (file.parent / "parts" / "text.safetensors").touch()
    told = problems(file, RECIPE, ["spec.towers.text.weights=text.safetensors"])
    assert told == ["recipe.yaml:5: pretrain.text: towers.text.weights is given; remove one of the two"]


def test_without_links_the_tasks_are_named(file: Path) -> None:
    told = problems(file, RECIPE.replace("  tasks: [speech -> text]\n", ""), ["spec.links=[]"])
    assert told == [
        "recipe.yaml:6: train.tasks: the spec has no links, so no task follows from it; name the tasks",
    ]


def test_problems_inside_the_spec_s_file_carry_that_file_s_lines(file: Path) -> None:
    inner = file.parent / "parts" / "spec.yaml"
    inner.write_text(inner.read_text().replace("n_layers: 1", "n_layerz: 1"))
    n_line = 1 + inner.read_text().split("\n").index("      n_layerz: 1")
    told = problems(file, RECIPE.replace("steps: 20", "stepz: 20"))
    assert (
        f"parts/spec.yaml:{n_line}: towers.text.config.n_layerz: unknown key 'n_layerz'; did you mean 'n_layers'?"
        in told
    )
    assert "recipe.yaml:8: train.stepz: unknown key 'stepz'; did you mean 'steps'?" in told
    assert not [line for line in told if line.startswith("recipe.yaml") and " spec" in line], "told once"


def test_problems_inside_an_inlined_spec_carry_the_recipe_s_lines(tmp_path: Path) -> None:
    file = write_recipe(tmp_path)
    text = file.read_text().replace("from: speech", "from: speach")
    n_line = 1 + text.split("\n").index("    from: speach")
    assert problems(file, text) == [
        f"recipe.yaml:{n_line}: spec.links[0].from: no tower is called 'speach'; did you mean 'speech'?"
    ]


@pytest.mark.parametrize("inline", [True, False])
def test_overrides_reach_into_the_spec(file: Path, inline: bool) -> None:
    path = write_recipe(file.parent) if inline else file
    assert load_recipe(path).spec.towers["text"].freeze is True
    recipe = load_recipe(path, ["spec.towers.text.freeze=false", "train.steps=3", "spec.links[0].every=1"])
    assert recipe.spec.towers["text"].freeze is False
    assert recipe.train.steps == 3
    with pytest.raises(SpecError, match=r"towers\.text\.freez: unknown key 'freez'; did you mean 'freeze'\?"):
        load_recipe(path, ["spec.towers.text.freez=false"])


def test_an_override_may_name_another_spec(file: Path) -> None:
    (file.parent / "other.yaml").write_text(yaml.safe_dump(spec(name="other")))
    assert load_recipe(file, ["spec=other.yaml", "spec.towers.text.freeze=false"]).spec.name == "other"
    assert load_recipe(file, [f"spec={spec(name='inline')!r}"]).spec.name == "inline"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spec: nowhere.yaml", "nowhere.yaml: cannot be read: No such file or directory"),
        ("spec: parts", "parts: cannot be read: Is a directory"),
        ("spec: 3", "recipe.yaml:2: spec: expected a mapping, got 3"),
        ("spek: x", "recipe.yaml:1: spec: required key 'spec' is missing"),
    ],
)
def test_a_spec_that_is_not_there(file: Path, text: str, message: str) -> None:
    assert message in problems(file, RECIPE.replace("spec: parts/spec.yaml", text))


def test_paths_are_beside_the_file_or_in_the_working_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = file.parent / "elsewhere"
    (elsewhere / "here").mkdir(parents=True)
    (elsewhere / "parts").mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_recipe("../recipe.yaml").data.samefile(file.parent / "parts"), "the file's neighbour goes first"
    assert load_recipe("../recipe.yaml", ["data=here"]).data.samefile(elsewhere / "here")
    assert load_recipe("../recipe.yaml", ["data=nowhere"]).data == Path("nowhere")
    monkeypatch.chdir(file.parent)
    assert load_recipe("recipe.yaml", ["spec=parts/spec.yaml"]).spec.name == "tiny"


def test_load_any_tells_a_recipe_from_a_spec(file: Path) -> None:
    assert isinstance(load_any(file, ["train.steps=2"]), Recipe)
    assert isinstance(load_any(file.parent / "parts" / "spec.yaml", ["towers.text.freeze=false"]), CompositionSpec)


def test_learning_rates_follow_the_paper_where_none_is_named() -> None:
    trained = compiled_spec()
    assert set(learning_rates(trained, Phase(steps=1)).values()) == {LEARNING_RATE_UNFROZEN}
    towers = spec()["towers"]
    towers["speech"]["freeze"] = True
    towers["speech"]["input_projection"] = {}
    frozen = compiled_spec(towers=towers)
    assert learning_rates(frozen, Phase(steps=1)) == dict.fromkeys(
        ["towers.text", "towers.speech", "input_projections.speech", "links.speech_to_text"], LEARNING_RATE_FROZEN
    )
    towers["speech"]["freeze"] = {"*": "freeze"}
    assert set(learning_rates(compiled_spec(towers=towers), Phase(steps=1)).values()) == {LEARNING_RATE_UNFROZEN}
    stage = Stage(name="one", steps=1, freeze={"towers.speech": True})
    assert set(learning_rates(trained, stage).values()) == {LEARNING_RATE_FROZEN}
    phase = Phase(steps=1, learning_rate=0.5, learning_rates={"links.speech_to_text": 0.25})
    assert learning_rates(trained, phase) == {"towers.text": 0.5, "towers.speech": 0.5, "links.speech_to_text": 0.25}


def test_every_parameter_is_in_one_group() -> None:
    towers = spec()["towers"]
    towers["text"] |= {"input_projection": {}}
    both = [{"from": a, "into": b, "every": 1, "kind": "gated_cross_attention", "config": {"n_heads": 2}}
            for a, b in (("speech", "text"), ("text", "speech"))]  # fmt: skip
    made = compiled_spec(towers=towers, links=both)
    groups = group_names(made)
    for name, _ in build_model(made)[0].named_parameters():
        assert len([group for group in groups if name.startswith(f"{group}.")]) == 1, name


def test_the_derived_recipe_goes_around() -> None:
    both = [{"from": a, "into": b, "every": 1, "kind": "gated_cross_attention", "config": {"n_heads": 2}}
            for a, b in (("speech", "text"), ("text", "speech"))]  # fmt: skip
    recipe = derived_recipe(compiled_spec(links=both))
    assert recipe.tasks() == [Task(("speech",), "text"), Task(("text",), "speech")]
    assert recipe.train.learning_rates["links.text_to_speech"] == LEARNING_RATE_UNFROZEN
    assert recipe_complaints(recipe) == []
    again = Recipe.model_validate(yaml.safe_load(yaml.safe_dump(dump(recipe))))
    assert again == recipe
    assert derived_recipe(compiled_spec(links=[])).tasks() == [Task((), "text"), Task((), "speech")]


def test_tasks_follow_from_the_links_where_none_is_named(file: Path) -> None:
    recipe = load_recipe(write_recipe(file.parent, {"tasks": None}))
    assert recipe.tasks() == [Task(("speech",), "text")]


@pytest.mark.parametrize("device", ["xla", "tpu"])
def test_an_optimizer_that_a_device_waits_for_is_refused(file: Path, device: str) -> None:
    adafactor = "train.optimizer=adafactor"
    assert load_recipe(file, [f"device={device}", "train.optimizer=adamw"]).device == device
    assert load_recipe(file, [adafactor]).device == "auto"
    with pytest.raises(SpecError, match=f"train.optimizer: adafactor counts its steps on the host, for which {device}"):
        load_recipe(file, [f"device={device}", adafactor])


def test_a_task_says_what_comes_after_what() -> None:
    task = Task.parse(" video->speech ->  text ")
    assert str(task) == "video -> speech -> text"
    assert task.sees() == {("speech", "video"), ("text", "video"), ("text", "speech")}
    assert Task.parse("text") == Task((), "text")
    assert Task((), "text").sees() == set()
    with pytest.raises(
        ZippkitError, match=re.escape("task 'a -> txt': no tower is called 'txt'; did you mean 'text'?")
    ):
        Task.parse("a -> txt").check(["a", "text"])


def test_a_sequence_of_targets() -> None:
    task = Task.parse("speech->[ text,speech ]")
    assert str(task) == "speech -> [text, speech]"
    assert Task.parse(str(task)) == task
    assert (task.conditions, task.targets, task.target) == (("speech",), ("text", "speech"), "speech")
    assert task.sees() == {("text", "speech"), ("speech", "text")}
    assert task.beginnings == (Task(("speech",), "text"), task)
    assert task.generated == ["text", "speech"]
    assert Task.parse("[text]") == Task.parse("text")
    assert Task.parse("a -> [b, c, d]").beginnings[1] == Task.parse("a -> [b, c]")
    assert Task.parse("left + right").beginnings == (Task.parse("left + right"),)


def test_a_task_whose_loss_reaches_nothing_that_is_trained(file: Path) -> None:
    given = {"tasks": ["speech -> text", "text", {"task": "speech", "weight": 2.0}, {"task": "text", "weight": 0.0}]}
    with pytest.raises(SpecError) as caught:
        load_recipe(write_recipe(file.parent, given))
    assert [f"{problem.key}: {problem.message}" for problem in caught.value.problems] == [
        "train.tasks[1]: nothing that is trained has a part in 'text' (trained: towers.speech, links.speech_to_text); "
        "leave it out"
    ]
    stage = {"name": "one", "freeze": {"links.speech_to_text": True}}
    assert load_recipe(write_recipe(file.parent, [stage])).tasks() == [Task(("speech",), "text")]
    stage = {"name": "one", "freeze": {"towers.speech": True}, "tasks": ["speech"]}
    with pytest.raises(SpecError, match=r"part in 'speech' .trained: links.speech_to_text"):
        load_recipe(write_recipe(file.parent, [stage]))


def test_a_tower_alone_is_unfrozen_and_without_input_projection() -> None:
    towers = spec()["towers"]
    towers["text"]["input_projection"] = {}
    alone = single_tower(compiled_spec(towers=towers), "text")
    assert list(alone.towers) == ["text"]
    assert alone.links == []
    assert alone.towers["text"].freeze is False
    assert alone.towers["text"].input_projection is None
    assert alone.towers["text"].settings == compiled_spec().towers["text"].settings


def test_the_rate_rises_and_falls() -> None:
    phase = Phase(steps=10, warmup=4, schedule="cosine")
    rates = [phase.rate(step) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.1
    assert {Phase(steps=10).rate(step) for step in range(10)} == {1.0}


def test_the_demo_s_spec_is_the_one_that_its_recipe_names() -> None:
    recipe = load_recipe(ROOT / "recipes" / "demo" / "recipe.yaml")
    assert recipe.spec == load_spec(ROOT / "recipes" / "demo" / "spec.yaml")
    assert recipe.data.samefile(ROOT / "recipes" / "demo" / "data")
