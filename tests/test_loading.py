"""A YAML file to a checked spec: every problem at once, each at its line, and never another kind of error."""

from __future__ import annotations

import copy
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import zippkit
from helpers.compositions import SPEC
from zippkit.errors import SpecError, ZippkitError
from zippkit.loading import check_spec, load_spec

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("load") / "spec.yaml"


def problems(file: Path, text: str, overrides: list[str] | None = None) -> list[str]:
    """What is told about a spec, one line each; nothing for a sound one."""
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_spec(file, overrides or [])
    except SpecError as error:
        assert isinstance(error, ZippkitError)
        told = str(error).replace(str(file), "FILE").split("\n")
        assert len(told) == len(error.problems), "one line for each problem"
        assert all(re.match(r"(FILE|override .*)(:\d+)?: .", line) for line in told)
        return told
    return []


def test_a_sound_spec(file: Path) -> None:
    assert problems(file, SPEC) == []


def test_every_problem_is_told_with_its_line(file: Path) -> None:
    text = """\
name: Tiny
towers:
  text:
    kind: decodr
    freeze: yes please
  speech:
    kind: decoder
    config: {vocab_size: 30, dim: 24, n_layers: six, n_heads: 2, n_haeds: 3}
    frame: {begin: 28, end: 29}
  Video: {kind: decoder, frame: {begin: 1}}
  image:
    kind: decodr
links:
  - {kind: gated_cross_attention, from: speech, into: text, every: 0}
  - {kind: gated_cross_attention, from: speech, into: text, evry: 3}
  - {kind: gated_cross_atention, from: speech, into: speech}
colour: red
"""
    assert problems(file, text) == [
        "FILE:1: name: string should match pattern '^[a-z][a-z0-9_]*$', got 'Tiny'",
        "FILE:4: towers.text.kind: no tower of kind 'decodr' is registered; did you mean 'decoder'?",
        "FILE:5: towers.text.freeze: expected true, false, or a mapping of name patterns to `freeze`, `train` or "
        "`lora`, got 'yes please'",
        "FILE:8: towers.speech.config.n_haeds: unknown key 'n_haeds'; did you mean 'n_heads'?",
        "FILE:8: towers.speech.config.n_layers: expected a valid integer, got 'six'",
        "FILE:10: towers.Video: string should match pattern '^[a-z][a-z0-9_]*$', got 'Video'",
        "FILE:10: towers.Video.frame.end: required key 'end' is missing",
        "FILE:12: towers.image.kind: no tower of kind 'decodr' is registered; did you mean 'decoder'?",
        "FILE:14: links[0].every: expected greater than 0, got 0",
        "FILE:15: links[1].evry: unknown key 'evry'; did you mean 'every'?",
        "FILE:16: links[2].into: a link joins two towers, but `from` and `into` are both 'speech'",
        "FILE:16: links[2].kind: no link of kind 'gated_cross_atention' is registered; "
        "did you mean 'gated_cross_attention'?",
        "FILE:17: colour: unknown key 'colour'; valid: contrastive, links, name, next, towers",
    ]


def test_every_problem_between_sections_is_told_with_its_line(file: Path) -> None:
    text = """\
name: tiny
towers:
  text:
    kind: decoder
    config: {vocab_size: 20, dim: 16, n_layers: 4, n_heads: 3}
    frame: {begin: 18, end: 19}
  train:
    kind: decoder
    config: {vocab_size: 30, dim: 24, n_layers: 6, n_heads: 2}
    frame: {begin: 30, end: 30}
    freeze: {layers.*: freeze}
  speech:
    kind: decoder
    config: {vocab_size: 30, dim: 24, n_layers: 6, n_heads: 2}
    frame: {begin: 28, end: 30}
links:
  - {kind: gated_cross_attention, from: speach, into: train, every: 2}
  - {kind: gated_cross_attention, from: speech, into: train, every: 2, config: {n_heads: 7}}
  - {kind: gated_cross_attention, from: train, into: speech, every: 7}
"""
    assert problems(file, text) == [
        "FILE:5: towers.text.config: n_heads 3 does not divide dim 16; give head_dim or another n_heads",
        "FILE:7: towers.train: 'train' means something else in a model; call the tower otherwise",
        "FILE:10: towers.train.frame: id 30 is outside the vocabulary; expected less than 30",
        "FILE:11: towers.train.freeze: no rule matches 'embed_tokens.weight', 'norm.weight'; add a pattern for it",
        "FILE:15: towers.speech.frame: id 30 is outside the vocabulary; expected less than 30",
        "FILE:17: links[0].from: no tower is called 'speach'; did you mean 'speech'?",
        "FILE:18: links[1].config: n_heads 7 does not divide the target's width 24",
        "FILE:19: links[2].config: rotary positions need an even head width, got 24 / 8 heads",
        "FILE:19: links[2].every: got 7, but 'speech' has only 6 layers",
    ]


def test_problems_of_every_kind_are_told_at_once(file: Path) -> None:
    text = """\
name: tiny
towers:
  text:
    kind: decoder
    config: {vocab_size: 20, dim: 16, n_layers: 4, n_heads: 2}
    frame: {begin: 18, end: 19}
    freeze: maybe
    lora: {pattern: nothing.like.this}
  speech:
    kind: decoder
    kind: decodr
    config: {vocab_size: 30, dim: 24, n_layers: 6, n_heads: 2}
    frame: {begin: 28, end: 90}
  image:
    kind: decoder
    config: {vocab_size: 30, dim: !!int wide, n_layers: 6, n_heads: 2}
    frame: {begin: 28, end: 29}
  Video: {share_with: text}
links:
  - {kind: gated_cross_attention, from: speech, into: text, every: 9, projection: {depth: 0}, name: 3}
  - {kind: gated_cross_attention, from: speech, into: text, evry: 3, config: {n_heads: 7}}
  - {kind: gated_cross_attention, from: Video, into: speach, every: 1}
  - {kind: gated_cross_attention, from: image, into: text, every: 1, name: up, clock: never}
  - {kind: gated_cross_attention, from: text, into: image, every: 1, name: down, clock: sync}
  - 5
contrastive:
  - {from: text}
"""
    assert problems(file, text) == [
        "FILE:7: towers.text.freeze: expected true, false, or a mapping of name patterns to `freeze`, `train` or "
        "`lora`, got 'maybe'",
        "FILE:11: towers.speech.kind: duplicate key 'kind', first given on line 10; keep one of them",
        "FILE:13: towers.speech.frame: id 90 is outside the vocabulary; expected less than 30",
        "FILE:16: towers.image.config.dim: not a value that YAML knows (invalid literal for int() with base 10: "
        "'wide')",
        "FILE:18: towers.Video: string should match pattern '^[a-z][a-z0-9_]*$', got 'Video'",
        "FILE:20: links[0].every: got 9, but 'text' has only 4 layers",
        "FILE:20: links[0].name: expected a valid string, got 3",
        "FILE:20: links[0].projection.depth: expected greater than or equal to 1, got 0",
        "FILE:21: links[1].config: n_heads 7 does not divide the target's width 16",
        "FILE:21: links[1].evry: unknown key 'evry'; did you mean 'every'?",
        "FILE:22: links[2].into: no tower is called 'speach'; did you mean 'speech'?",
        "FILE:23: links[3].clock: expected 'turns' or 'sync', got 'never'",
        "FILE:25: links[5]: expected a mapping, got 5",
        "FILE:27: contrastive[0].into: required key 'into' is missing",
    ]


MISTAKES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "name": (("name",), "Tiny"),
    "unknown key": (("colour",), "red"),
    "tower's kind": (("towers", "image", "kind"), "decodr"),
    "tower's type": (("towers", "image", "input_projection"), 5),
    "config's type": (("towers", "text", "config", "n_layers"), "four"),
    "config's shape": (("towers", "speech", "config", "n_heads"), 7),
    "frame's type": (("towers", "video", "frame", "end"), -1),
    "freeze rule": (("towers", "video", "freeze"), {"nothing": "freeze"}),
    "weights": (("towers", "image", "weights"), "nowhere"),
    "link's name": (("links", 0, "from"), "speach"),
    "link's type": (("links", 1, "every"), -1),
    "link's key": (("links", 2, "projection", "depht"), 1),
    "link's depth": (("links", 3, "every"), 9),
    "link's shape": (("links", 4, "config", "n_heads"), 5),
    "no link": (("links", 5), "x"),
    "contrast": (("contrastive", 0, "source_depth"), 99),
}


def several() -> dict[str, Any]:
    """Four towers and six links, in which the mistakes do not touch each other."""
    config = {"vocab_size": 30, "dim": 24, "n_layers": 4, "n_heads": 2}
    one = {"kind": "decoder", "config": config, "frame": {"begin": 28, "end": 29}}
    towers = {name: copy.deepcopy(one) for name in ("text", "speech", "image", "video", "smell", "touch")}
    ends = [("speech", "smell"), ("image", "smell"), ("video", "smell"), ("smell", "touch"), ("touch", "smell")]
    links = [
        {"kind": "gated_cross_attention", "from": a, "into": b, "every": 2, "config": {"n_heads": 2}, "projection": {}}
        for a, b in [*ends, ("smell", "video")]
    ]
    contrasts = [{"from": "smell", "into": "touch", "source_depth": 1}]
    return {"name": "tiny", "towers": towers, "links": links, "contrastive": contrasts}


def broken(*mistakes: str) -> set[Any]:
    """What is told about the spec with some mistakes in it."""
    data = several()
    for name in mistakes:
        (*around, last), value = MISTAKES[name]
        inside: Any = data
        for part in around:
            inside = inside.setdefault(part, {}) if isinstance(inside, dict) else inside[part]
        inside[last] = value
    return set(check_spec(data)[1])


def test_two_mistakes_are_told_as_each_alone() -> None:
    """In one wave, and nothing follows from the one that the other alone would not have brought."""
    assert broken() == set()
    alone = {name: broken(name) for name in MISTAKES}
    for name, found in alone.items():
        assert len(found) == 1, name
        assert {where[:2] for where, _ in found} == {MISTAKES[name][0][:2]}, name
    for one, other in itertools.combinations(MISTAKES, 2):
        assert broken(one, other) == alone[one] | alone[other], (one, other)
    assert broken(*MISTAKES) == set().union(*alone.values())


@pytest.mark.parametrize("value", [None, 5, "five", True, [], [5], {}, {"x": 5}, -1.5])
def test_a_value_of_another_type_is_told_where_it_stands_and_nowhere_else(value: Any) -> None:
    sound = several() | {"next": {}}
    for place in places(sound):
        data = copy.deepcopy(sound)
        inside: Any = data
        for part in place[:-1]:
            inside = inside[part]
        if type(inside[place[-1]]) is type(value):
            continue
        inside[place[-1]] = value
        spec, found = check_spec(data)
        elsewhere = [(where, said) for where, said in found if where[: len(place)] != place]
        assert spec is not None or not elsewhere, (place, elsewhere)


def test_a_recipe_in_place_of_a_spec(file: Path) -> None:
    assert problems(file, "name: run\nspec: spec.yaml\ndata: data\ntrain: {steps: 1}\n") == [
        "FILE:2: spec: a recipe, whose key `spec` says where the composition is; expected a spec, with `towers`"
    ]


def test_a_value_from_the_command_line_has_no_line(file: Path) -> None:
    assert problems(file, SPEC, ["links[1].every=0"]) == ["FILE: links[1].every: expected greater than 0, got 0"]
    assert problems(file, SPEC, ["links[1].projection={depth: 0}"]) == [
        "FILE: links[1].projection.depth: expected greater than or equal to 1, got 0"
    ]


def test_weights_are_found_beside_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("specs/near.safetensors", "specs/both.safetensors", "both.safetensors", "here.safetensors"):
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).touch()
    spec = tmp_path / "specs" / "spec.yaml"
    spec.write_text(SPEC)
    for given_path, found in [
        ("near.safetensors", "specs/near.safetensors"),
        ("both.safetensors", "specs/both.safetensors"),
        ("here.safetensors", "here.safetensors"),
        (str(tmp_path / "here.safetensors"), "here.safetensors"),
    ]:
        weights = load_spec(spec, [f"towers.text.weights={given_path}"]).towers["text"].weights
        assert weights is not None
        assert weights.resolve() == tmp_path / found


@pytest.mark.parametrize("name", ["evil.bin", "model.pt", "model.pth", "last.ckpt", "x.pkl", "spec.yaml", "weights"])
def test_weights_that_are_no_safetensors(file: Path, name: str) -> None:
    (file.parent / name).touch()
    (told,) = problems(file, SPEC.replace("freeze: true", f"weights: {name}"))
    assert told.startswith("FILE:7: towers.text.weights: ")
    assert "is no file of weights; expected .safetensors or a folder" in told
    assert told.endswith("; pickled checkpoints can run code and are never opened") == (
        name not in ("spec.yaml", "weights")
    )


@pytest.mark.parametrize("path", ["missing", '"a\\0b"', '"\\ud800"', "x" * 5000, "x/" * 3000])
def test_weights_that_are_not_there(file: Path, path: str) -> None:
    (told,) = problems(file, SPEC.replace("freeze: true", f"weights: {path}"))
    assert told.startswith("FILE:7: towers.text.weights: ")
    assert told.endswith("does not exist; expected a safetensors file or a folder")


def test_checking_imports_no_torch(file: Path) -> None:
    file.write_text(SPEC)
    code = f"import sys, zippkit; zippkit.load_spec({str(file)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Words that have broken parsers before, and the spec's own.
WORDS = [
    *re.findall(r"\w+", SPEC),
    *("source_every", "source", "final", "sites", "projection", "depth", "width", "activation", "relu", "weights"),
    *("null", "~", "0", "-1", "3.5", "1e400", "1e-3", ".inf", ".nan", "0x10", "99999999999999999999", "9999999"),
    *(
        "[",
        "]",
        "{",
        "}",
        ":",
        ": ",
        "- ",
        "\n",
        "  ",
        "\t",
        "*a",
        "&a ",
        "!!int ",
        '"',
        "'",
        "#",
        "|",
        ">",
        "<<: ",
        "é",
        "🎧",
    ),
]


@st.composite
def mangled(draw: st.DrawFn) -> str:
    """The sound spec with a few runs of characters replaced."""
    text = SPEC
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        length = draw(st.sampled_from([0, 0, 1, 2, 5, 20, 80]))
        new = draw(st.one_of(st.lists(st.sampled_from(WORDS), max_size=3).map("".join), st.text(max_size=5)))
        text = text[:start] + new + text[start + length :]
    return text


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 40),
        st.sampled_from([2**40, -(2**63), 2**70, 0.5, 1e308, float("inf"), float("nan")]),
        st.floats(),
        st.sampled_from(WORDS),
        st.text(max_size=5),
        st.dates(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), inner, max_size=3),
    ),
    max_leaves=6,
)


def places(data: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, value in inside for place in [(*here, key), *places(value, (*here, key))]]


@st.composite
def misshapen(draw: st.DrawFn) -> str:
    """The sound spec with a few of its values replaced, renamed, added or removed."""
    data = yaml.safe_load(SPEC)
    for _ in range(draw(st.integers(1, 3))):
        known = places(data)
        if not known:
            break
        place = draw(st.sampled_from(known))
        parent = data
        for part in place[:-1]:
            parent = parent[part]
        action = draw(st.sampled_from(["replace", "add", "remove"]))
        if action == "remove":
            del parent[place[-1]]
        elif action == "add" and isinstance(parent, dict):
            parent[draw(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)))] = draw(VALUES)
        elif action == "add":
            parent.append(draw(st.one_of(VALUES, st.just(copy.deepcopy(parent[-1])))))
        else:
            parent[place[-1]] = draw(VALUES)
    return yaml.safe_dump(data, allow_unicode=True, sort_keys=False)


@settings(max_examples=250)
@given(text=mangled())
def test_a_mangled_spec_is_sound_or_told(file: Path, text: str) -> None:
    problems(file, text)


@settings(max_examples=250)
@given(text=misshapen())
def test_a_misshapen_spec_is_sound_or_told(file: Path, text: str) -> None:
    problems(file, text)


@settings(max_examples=50, deadline=None)
@given(text=misshapen())
def test_a_misshapen_spec_that_is_sound_has_a_model(file: Path, text: str) -> None:
    spec = None if problems(file, text) else load_spec(file)
    if spec is not None and sum(tower.settings.n_layers for tower in spec.towers.values()) < 100:
        zippkit.compile(spec, device="meta")
