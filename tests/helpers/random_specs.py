"""Random specs of native decoders with every kind of link, and random rows for them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from helpers.compositions import tower
from zippkit.batch.batch import Segment
from zippkit.plan.graph import Graph

NAMES = ("text", "speech", "image")
ATTENDING = ("gated_cross_attention", "cross_attention")


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    """Mostly sound: what the check refuses, such as links that cannot be ordered, has to be passed over."""
    names = draw(st.sampled_from([NAMES[:2], NAMES]))
    joint = draw(st.sampled_from([False, False, False, True]))
    towers = {name: draw(_towers(joint)) for name in names}
    kinds = ("joint_attention", "prefix") if joint else (*ATTENDING, *ATTENDING, "prefix", "resampler")
    links = []
    for i in range(draw(st.integers(1, 4))):
        source, target = draw(st.permutations(names))[:2]
        n_source, n_target = (towers[name]["config"]["n_layers"] for name in (source, target))
        made = draw(_links(draw(st.sampled_from(kinds)), n_source, n_target))
        links.append({"from": source, "into": target, "name": f"link{i}", **made})
    return {"name": "random", "towers": towers, "links": links}


@st.composite
def _towers(draw: st.DrawFn, joint: bool) -> dict[str, Any]:
    config: dict[str, Any] = {"tied": draw(st.booleans()), "rope_theta": draw(st.sampled_from([50.0, 10_000.0]))}
    if not joint and draw(st.booleans()):
        config |= {"n_kv_heads": 1, "head_dim": draw(st.sampled_from([4, 6]))}
    more: dict[str, Any] = {}
    if draw(st.booleans()):
        projection = {"depth": draw(st.integers(1, 2)), "residual": draw(st.booleans())}
        more["input_projection"] = projection | {"activation": draw(st.sampled_from(["relu", "gelu", "silu"]))}
    if draw(st.sampled_from([False, False, True])):
        more |= {"lora": {"rank": 2, "pattern": "*_proj.weight"}, "freeze": True}
    dim = 8 if joint else draw(st.sampled_from([8, 12]))
    return tower(draw(st.integers(1, 4)), dim, config=config, **more)


@st.composite
def _links(draw: st.DrawFn, kind: str, n_source: int, n_target: int) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": kind}
    if kind == "joint_attention":
        return found | {"every": draw(st.integers(1, n_target))}
    depth = draw(st.integers(1, 3))
    found["projection"] = {"depth": depth, "activation": draw(st.sampled_from(["relu", "gelu"]))}
    config: dict[str, Any] = {"norm_source": draw(st.booleans())}
    if kind == "prefix":
        return found | {"config": config | {"stack": draw(st.integers(1, 3))}, **draw(_embedding(n_source))}
    if kind == "resampler":
        config |= {"queries": draw(st.integers(2, 3)), "depth": draw(st.integers(1, 2)), "n_heads": 2, "ffn_mult": 1}
        config |= {"design": draw(st.sampled_from(["perceiver", "qformer"]))}
        config |= {"positions": draw(st.sampled_from(["keys", "none"]))}
        if draw(st.booleans()):
            return found | {"config": config, **draw(_embedding(n_source))}
        config["output"] = "cross_attention"
    else:
        config |= {"n_heads": 2, "positions": draw(st.sampled_from(["rotary", "rotary", "keys", "none"]))}
        if config["positions"] == "rotary":
            config["pace"] = draw(st.sampled_from([1.0, 0.5, 3.25]))
        if kind == "gated_cross_attention":
            config |= {"ffn_mult": 2, "gate": draw(st.sampled_from(["scalar", "vector", "none"]))}
    config["placement"] = draw(st.sampled_from(["after", "before"]))
    return found | {"config": config, **draw(_depths(n_source, n_target))}


def _embedding(n_source: int) -> st.SearchStrategy[dict[str, Any]]:
    explicit = st.integers(0, n_source).map(lambda depth: {"sites": [{"from": depth, "into": 0}]})
    return st.one_of(st.just({}), st.just({"source": "embedding"}), explicit)


def _depths(n_source: int, n_target: int) -> st.SearchStrategy[dict[str, Any]]:
    site = st.tuples(st.integers(0, n_source), st.integers(1, n_target)).map(lambda s: {"from": s[0], "into": s[1]})
    explicit = st.lists(site, min_size=1, max_size=2).map(lambda sites: {"sites": sites})
    how = st.sampled_from([{}, {"source": "final"}, {"source": "embedding"}, {"source_every": 1}, {"source_every": 2}])
    every = st.tuples(st.integers(1, n_target), how).map(lambda pair: {"every": pair[0], **pair[1]})
    return st.one_of(explicit, every, every)


def rows(graph: Graph) -> st.SearchStrategy[list[Segment]]:
    """One to five segments of up to three tokens."""
    segment = st.builds(Segment, st.sampled_from(list(graph.modalities)), st.lists(st.integers(0, 17), max_size=3))
    return st.lists(segment, min_size=1, max_size=5)
