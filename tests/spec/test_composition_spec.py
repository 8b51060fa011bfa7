"""What a spec may say: one broken key each, freeze rules, names, and that what passes the check also compiles."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import zippkit
from helpers.compositions import SPEC, link, make_spec, tower
from zippkit.errors import SpecError, did_you_mean
from zippkit.loading import check_spec
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.words import TAKEN_NAMES
from zippkit.spec.yaml_document import dotted


def complaints(changes: dict[str, Any]) -> dict[str, str]:
    """What is wrong with the sound spec after ``changes`` by dotted place; None removes a key."""
    data = yaml.safe_load(SPEC)
    for key, value in changes.items():
        *parents, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
        section = data
        for part in parents:
            section = section[part]
        if value is None:
            del section[last]
        else:
            section[last] = value
    return {dotted(place): message for place, message in check_spec(data)[1]}


EVERY_AND_SITES = {"links.0.sites": [{"from": 1, "into": 1}]}
ONLY_SITES = EVERY_AND_SITES | {"links.0.every": None}
DEPTHS = ({}, {"source_every": 1}, {"source": "final"}, {"source": "embedding"})


@pytest.mark.parametrize(
    ("changes", "place", "told"),
    [
        ({"name": None}, "name", "required key 'name' is missing"),
        ({"name": 7}, "name", "expected a valid string, got 7"),
        ({"towers": {}}, "towers", "dictionary should have at least 1 item"),
        ({"towers": None}, "towers", "required key 'towers' is missing"),
        ({"towers.text": 5}, "towers.text", "expected a mapping, got 5"),
        ({"links": {}}, "links", "expected a list, got {}"),
        ({"towers.text.kind": "decodr"}, "towers.text.kind", "no tower of kind 'decodr' is registered; did you mean"),
        ({"towers.text.kind": "gated_cross_attention"}, "towers.text.kind", "no tower of kind"),
        ({"links.0.kind": "decoder"}, "links[0].kind", "no link of kind 'decoder' is registered"),
        ({"towers.text.config.dim": "16"}, "towers.text.config.dim", "expected a valid integer, got '16'"),
        ({"towers.text.config.dim": 16.0}, "towers.text.config.dim", "expected a valid integer, got 16.0"),
        ({"towers.text.config.dim": True}, "towers.text.config.dim", "expected a valid integer, got True"),
        ({"towers.text.config.n_layers": 10**9}, "towers.text.config.n_layers", "expected less than or equal to 10000"),
        ({"towers.text.config.n_heads": 3}, "towers.text.config", "n_heads 3 does not divide dim 16"),
        ({"towers.text.config.n_heads": 16}, "towers.text.config", "head width 1 is odd"),
        ({"towers.text.config.n_kv_heads": 4}, "towers.text.config", "n_kv_heads 4 does not divide n_heads 2"),
        ({"towers.text.config.rope_theta": float("inf")}, "towers.text.config.rope_theta", "expected a finite number"),
        ({"towers.text.config.dimm": 1}, "towers.text.config.dimm", "unknown key 'dimm'; did you mean 'dim'?"),
        ({"towers.text.frame": None}, "towers.text", "the model has no begin and end ids of its own; expected `frame"),
        ({"towers.text.frame.end": 20}, "towers.text.frame", "id 20 is outside the vocabulary; expected less than 20"),
        ({"towers.text.frame.begin": -1}, "towers.text.frame.begin", "expected greater than or equal to 0, got -1"),
        ({"towers.text.weights": "nowhere"}, "towers.text.weights", "'nowhere' does not exist; expected a safetensors"),
        ({"towers.text.weights": 5}, "towers.text.weights", "expected a path, got 5"),
        ({"towers.text.freeze": "true"}, "towers.text.freeze", "expected true, false, or a mapping of name patterns"),
        ({"towers.text.freeze": {}}, "towers.text.freeze", "expected true, false, or a mapping of name patterns"),
        ({"towers.text.freeze": {"*": "frozen"}}, "towers.text.freeze", "expected true, false, or a mapping"),
        (
            {"towers.text.input_projection": {"activation": "rleu"}},
            "towers.text.input_projection.activation",
            "expected 'relu', 'gelu' or 'silu', got 'rleu'",
        ),
        ({"towers.text.input_projection": True}, "towers.text.input_projection", "expected a mapping, got True"),
        (
            {"towers.text.lora": {"rank": 17, "pattern": "*.0.self_attn.q_proj.*"}},
            "towers.text.lora",
            "rank 17 is larger than a side of 'layers.0.self_attn.q_proj.weight', 16 x 16",
        ),
        (
            {"towers.text.lora": {"rank": 9, "pattern": "*.k_proj.*"}, "towers.text.config.n_kv_heads": 1},
            "towers.text.lora",
            "rank 9 is larger than a side of 'layers.0.self_attn.k_proj.weight', 8 x 16; rank 9 is larger",
        ),
        (
            {"towers.text.lora": {"pattern": "layers.1.*"}},
            "towers.text.lora",
            "'layers.1.input_layernorm.weight' is not the weight of a linear map; ",
        ),
        (
            {"towers.text": None, "links": [], "towers.speech.input_projection": {}},
            "towers.speech.input_projection",
            "only rows of several modalities pass it, and the spec has one; remove `input_projection`",
        ),
        ({"links.0.from": "speach"}, "links[0].from", "no tower is called 'speach'; did you mean 'speech'?"),
        ({"links.0.into": "image"}, "links[0].into", "no tower is called 'image'; valid: speech, text"),
        (
            {"links.0.into": "speech"},
            "links[0].into",
            "a link joins two towers, but `from` and `into` are both 'speech'",
        ),
        ({"links.0.every": None}, "links[0]", "expected either `every` or `sites`, got neither"),
        (EVERY_AND_SITES, "links[0]", "expected either `every` or `sites`, got both"),
        (ONLY_SITES | {"links.0.source_every": 1}, "links[0].sites", "`sites` says the source depths itself; remove"),
        (ONLY_SITES | {"links.0.source": "final"}, "links[0].sites", "`sites` says the source depths itself; remove"),
        (
            {"links.0.source": "final", "links.0.source_every": 1},
            "links[0].source",
            "expected either `source_every` or",
        ),
        ({"links.0.source": "last"}, "links[0].source", "expected 'final' or 'embedding', got 'last'"),
        ({"links.0.every": -3}, "links[0].every", "expected greater than 0, got -3"),
        ({"links.0.every": 5}, "links[0].every", "got 5, but 'text' has only 4 layers"),
        ({"links.0.every": None, "links.0.sites": []}, "links[0].sites", "list should have at least 1 item"),
        ({"links.0.every": None, "links.0.sites": [{"from": 1}]}, "links[0].sites[0].into", "required key 'into'"),
        (
            {"links.0.every": None, "links.0.sites": [{"from": 7, "into": 1}]},
            "links[0].sites[0].from",
            "depth 7 of 'speech', which has 6 layers",
        ),
        (
            {"links.1.from": "speech", "links.1.into": "text"},
            "links[1]",
            "2 links are called 'speech_to_text'; give each",
        ),
        ({"links.1.name": "speech_to_text"}, "links[0]", "2 links are called 'speech_to_text'; give each a distinct"),
        ({"links.0.config.n_heads": 3}, "links[0].config", "n_heads 3 does not divide the target's width 16"),
        (
            {"links.1.config.n_heads": 8},
            "links[1].config",
            "rotary positions need an even head width, got 24 / 8 heads",
        ),
        (
            {"links.0.projection": {"depth": 0}},
            "links[0].projection.depth",
            "expected greater than or equal to 1, got 0",
        ),
        (
            {"links.0.projection": {"depht": 1}},
            "links[0].projection.depht",
            "unknown key 'depht'; did you mean 'depth'?",
        ),
        ({"links.0.projection": {"width": 0}}, "links[0].projection.width", "expected greater than 0, got 0"),
    ],
)
def test_one_broken_key(changes: dict[str, Any], place: str, told: str) -> None:
    found = complaints(changes)
    assert place in found, found
    assert found[place].startswith(told), found[place]


def test_a_value_is_shown_but_not_at_any_length() -> None:
    (message,) = complaints({"towers.text.config.dim": ["x" * 10_000]}).values()
    assert len(message) < 150


def _is_torchs(value: object) -> bool:
    return (getattr(value, "__module__", None) or "torch").startswith("torch")


def test_names_that_are_taken_in_a_module() -> None:
    word = re.compile(r"[a-z][a-z0-9_]*$")
    # Other libraries add methods of their own to torch's modules once they are imported.
    own = {name for cls in torch.nn.ModuleDict.__mro__ for name, value in vars(cls).items() if _is_torchs(value)}
    own |= set(vars(torch.nn.ModuleDict()))
    assert {name for name in own if word.match(name)} <= TAKEN_NAMES
    for name in ("keys", "train", "total"):
        found = complaints({f"towers.{name}": tower(2), "links.0.name": name})
        assert "means something else in a model" in found[f"towers.{name}"]
        assert "means something else in a model" in found["links[0].name"]


def test_did_you_mean_never_lists_a_whole_model() -> None:
    assert did_you_mean("x", [f"name{i}" for i in range(90)]).endswith(" and 78 more")
    assert did_you_mean("x", []) == "; there are none"


PARAMETERS = ["embed.weight", "layers.0.q.weight", "layers.0.k.weight", "layers.1.q.weight", "norm.weight"]


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        (True, PARAMETERS),
        (False, []),
        ({"*": "freeze"}, PARAMETERS),
        ({"layers.0.*": "train", "[!l]*": "freeze", "layers.1.?.weight": "freeze"}, [PARAMETERS[i] for i in (0, 3, 4)]),
    ],
)
def test_freeze_rules(freeze: Any, frozen: list[str]) -> None:
    spec = make_spec({"text": tower(2, freeze=freeze)}).towers["text"]
    assert [name for name, is_frozen in spec.frozen(PARAMETERS).items() if is_frozen] == frozen


@pytest.mark.parametrize(
    ("freeze", "told"),
    [
        (
            {"*": "freeze", "laiers.0*": "train"},
            ["rule 'laiers.0*' matches no parameter; did you mean 'layers.0.q.weight'?"],
        ),
        (
            {"*": "freeze", "layers.0.*": "train"},
            [
                "'layers.0.q.weight' is matched by 2 rules (*, layers.0.*); expected one",
                "'layers.0.k.weight' is matched by 2 rules (*, layers.0.*); expected one",
            ],
        ),
        (
            {"norm.*": "train"},
            ["no rule matches 'embed.weight', 'layers.0.q.weight', 'layers.0.k.weight' and 1 more; add a pattern"],
        ),
        (
            {"norm.*": "train", "norm.w*": "freeze", "x": "freeze"},
            ["rule 'x' matches no parameter", "no rule matches ", "'norm.weight' is matched by 2 rules"],
        ),
    ],
)
def test_freeze_rules_that_do_not_fit(freeze: dict[str, str], told: list[str]) -> None:
    with pytest.raises(ValueError, match="rule") as caught:
        make_spec({"text": tower(2, freeze=freeze)}).towers["text"].frozen(PARAMETERS)
    for part in told:
        assert part in str(caught.value)


def test_the_decoder_tells_its_parameters_without_torch() -> None:
    """So that freeze rules are checked before anything is built."""
    for config in ({"tied": True}, {"tied": False, "n_kv_heads": 1, "head_dim": 6}):
        zipped = zippkit.compile(make_spec({"text": tower(3, config=config)}))
        told = zipped.spec.towers["text"].settings.parameter_names()
        assert told is not None
        decoder = zipped.model.tower("text")
        assert sorted(told) == sorted(name for name, _ in decoder.named_parameters())
        linear = {n: tuple(m.weight.shape) for n, m in decoder.named_modules() if isinstance(m, torch.nn.Linear)}
        shapes = zipped.spec.towers["text"].settings.linear_shapes()
        assert shapes == {f"{name}.weight": shape for name, shape in linear.items()}


def test_a_spec_made_in_python_is_checked_when_it_is_compiled() -> None:
    spec = make_spec({"text": tower(2), "speech": tower(2)}, [link("text", "speech", every=3)])
    with pytest.raises(SpecError, match=r"tiny: links\[0\]\.every: got 3, but 'speech' has only 2 layers"):
        zippkit.compile(spec)


@st.composite
def mostly_sound(draw: st.DrawFn) -> dict[str, Any]:
    """Specs of small numbers that often, but not always, fit each other."""
    towers = {}
    for name in draw(st.lists(st.sampled_from(["text", "speech", "image"]), min_size=1, max_size=3, unique=True)):
        config = {"n_heads": draw(st.sampled_from([1, 2, 4])), "tied": draw(st.booleans())}
        if draw(st.booleans()):
            config |= {"n_kv_heads": draw(st.sampled_from([1, 2])), "head_dim": draw(st.sampled_from([2, 6]))}
        more: dict[str, Any] = {"freeze": draw(st.sampled_from([True, False, {"*": "train"}]))}
        if draw(st.booleans()):
            more["input_projection"] = {"depth": draw(st.integers(1, 3)), "residual": draw(st.booleans())}
        towers[name] = tower(draw(st.integers(1, 3)), draw(st.sampled_from([8, 12])), config=config, **more)
    links = []
    for i in range(draw(st.integers(0, 3)) if len(towers) > 1 else 0):
        source, target = draw(st.permutations(list(towers)))[:2]
        n_source, n_target = (towers[name]["config"]["n_layers"] for name in (source, target))
        site = {"from": draw(st.integers(0, n_source)), "into": draw(st.integers(1, n_target))}
        every = {"every": draw(st.integers(1, n_target))}
        keys = draw(
            st.sampled_from([{"sites": [site]}, *(every | more for more in DEPTHS)]),
        )
        config = {"n_heads": draw(st.sampled_from([1, 2, 3])), "positions": draw(st.sampled_from(["rotary", "none"]))}
        projection = {"depth": draw(st.integers(1, 3)), "width": draw(st.integers(1, 5))}
        links.append(link(source, target, **keys, name=f"link{i}", config=config, projection=projection))
    return {"name": "tiny", "towers": towers, "links": links}


LARGEST = {
    "towers.text.config.dim": 2**20,
    "towers.text.config.vocab_size": 2**31 - 1,
    "towers.text.config.head_dim": 2**20,
    "towers.text.config.ffn_dim": 2**20,
    "towers.text.input_projection.width": 2**20,
    "towers.text.extend_vocabulary.more.size": 2**31 - 1,
    "links.0.projection.width": 2**20,
    "links.0.config.ffn_mult": 1024,
}


def test_the_largest_sizes_have_shapes_and_larger_ones_are_told() -> None:
    data = yaml.safe_load(SPEC)
    data["towers"]["text"] |= {"input_projection": {}, "extend_vocabulary": {"more": {}}}
    data["links"][0]["projection"] = {}

    def enlarge(by: int) -> None:
        for place, largest in LARGEST.items():
            section: Any = data
            *parents, last = place.split(".")
            for part in parents:
                section = section[int(part) if part.isdecimal() else part]
            section[last] = largest + by

    enlarge(0)
    zippkit.compile(CompositionSpec.model_validate(data), device="meta")
    enlarge(1)
    told = {dotted(place): message for place, message in check_spec(data)[1]}
    assert {place.replace("[0]", ".0") for place in told} == LARGEST.keys()
    assert all(message.startswith("expected less than or equal to") for message in told.values())


@settings(max_examples=40)
@given(data=mostly_sound())
def test_what_passes_the_check_compiles_and_runs(data: dict[str, Any]) -> None:
    spec, found = check_spec(data)
    assume(spec is not None and not found)
    zipped = zippkit.compile(spec)
    batch = zipped.collate([[zippkit.Segment(name, [1, 2, 3]) for name in spec.towers]])
    total = zipped.loss(zipped.model(batch), batch)["total"]
    assert torch.isfinite(total)
