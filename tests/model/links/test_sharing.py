"""One projection for several sites, or for both directions; and where links act in the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import zippkit
from helpers.compositions import link, make, make_spec, tower
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.errors import SpecError
from zippkit.plan.graph import build_graph
from zippkit.spec.derived_recipe import learning_rates
from zippkit.training.optimizer import build_optimizer

pytestmark = pytest.mark.slow

ROWS = [
    [Segment("a", [1, 2]), Segment("b", [3]), Segment("a", [4])],
    [Segment("b", [5, 1]), Segment("a", [2, 2]), Segment("b", [1])],
]


def both(share: str, **more: Any) -> Composition:
    shared = {"every": 2, "projection": {"depth": 2, "share": share}} | more
    return make({"a": tower(4), "b": tower(4)}, [link("a", "b", **shared), link("b", "a", **shared)])


def projections(zipped: Composition) -> dict[str, Any]:
    return {f"{s.link}.{s.index}": zipped.model.link(s).projection for s in zipped.graph.sites}


@pytest.mark.parametrize(("share", "n_modules"), [("none", 4), ("sites", 2), ("directions", 1)])
def test_one_module_stands_at_every_site_that_shares_it(share: str, n_modules: int) -> None:
    zipped = both(share)
    found = projections(zipped)
    assert len({id(module) for module in found.values()}) == n_modules
    assert (found["a_to_b.0"] is found["a_to_b.1"]) == (share != "none")
    assert (found["a_to_b.0"] is found["b_to_a.0"]) == (share == "directions")
    weights = [name for name, _ in zipped.model.named_parameters() if ".projection." in name]
    assert len(weights) == n_modules * 4, "a parameter is counted once"
    assert len([key for key in zipped.model.state_dict() if ".projection." in key]) == 4 * 4


@pytest.mark.parametrize("share", ["sites", "directions"])
@torch.no_grad()
def test_it_is_saved_and_loaded(share: str, tmp_path: Path) -> None:
    zipped = both(share)
    zipped.save(tmp_path / "saved")
    loaded = zippkit.load(tmp_path / "saved")
    assert len({id(module) for module in projections(loaded).values()}) == (2 if share == "sites" else 1)
    batch = zipped.collate(ROWS)
    for name, logits in zipped.model(batch).items():
        assert torch.equal(loaded.model(batch)[name], logits)


def test_it_is_trained_once_by_all() -> None:
    zipped = both("directions")
    phase = zipped.recipe.train
    optimizer = build_optimizer(zipped.model, learning_rates(zipped.spec, phase), phase)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}) == len(list(zipped.model.parameters()))
    batch = zipped.collate(ROWS)
    zipped.loss(zipped.model(batch), batch)["total"].backward()
    (together,) = {module[0].weight.grad for module in projections(zipped).values()}
    apart = both("none")
    apart.model.load_state_dict(zipped.model.state_dict())
    apart.loss(apart.model(batch), batch)["total"].backward()
    alone = [module[0].weight.grad for module in projections(apart).values()]
    assert torch.allclose(together, torch.stack(alone).sum(dim=0), atol=1e-6)


def test_two_pairs_of_three_towers_share_nothing_with_each_other() -> None:
    """One projection for a and b, another one for a and c."""
    shared = {"every": 2, "projection": {"depth": 2, "share": "directions"}}
    pairs = (("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"))
    zipped = make({name: tower(4) for name in "abc"}, [link(*pair, **shared) for pair in pairs])
    found = projections(zipped)
    assert len({id(module) for module in found.values()}) == 2
    assert found["a_to_b.0"] is found["b_to_a.1"] is not found["a_to_c.0"]
    assert found["a_to_c.0"] is found["c_to_a.1"]


def test_directions_of_two_widths_have_no_projection_in_common() -> None:
    shared = {"every": 2, "projection": {"share": "directions"}}
    spec = make_spec({"a": tower(4), "b": tower(4, 24)}, [link("a", "b", **shared), link("b", "a", **shared)])
    with pytest.raises(SpecError, match="one projection for both directions needs one width, got 16 and 24"):
        build_graph(spec)


def test_certificates() -> None:
    for share in ("sites", "directions"):
        report = zippkit.verify(zippkit.compile(both(share).spec))
        assert report.passed, str(report)


def test_before_a_layer_is_after_the_one_before_it() -> None:
    """Two links of one kind that act on one state, written both ways, are one composition."""
    towers = {"a": tower(4), "b": tower(4)}
    config = {"n_heads": 2, "ffn_mult": 2}
    after = make(towers, [link("a", "b", sites=[{"from": 1, "into": 1}, {"from": 3, "into": 3}])])
    before = make(
        towers,
        [
            link(
                "a",
                "b",
                sites=[{"from": 1, "into": 2}, {"from": 3, "into": 4}],
                config=config | {"placement": "before"},
            )
        ],
    )
    assert [str(op) for op in before.plan.ops] == [str(op) for op in after.plan.ops]
    before.model.load_state_dict(after.model.state_dict())
    batch = after.collate(ROWS)
    for name, logits in after.model(batch).items():
        assert torch.equal(before.model(batch)[name], logits)


def test_before_every_layer_in_both_directions() -> None:
    """The source is read at the relative depth of the state that is rewritten, so that the two can be ordered."""
    config = {"n_heads": 2, "ffn_mult": 2, "placement": "before"}
    towers = {"a": tower(4), "b": tower(2)}
    graph = build_graph(make_spec(towers, [link(x, y, every=1, config=config) for x, y in ("ab", "ba")]))
    depths = [(s.source_depth, s.target_depth) for s in graph.sites]
    assert depths == [(0, 0), (2, 1), (0, 0), (1, 1), (1, 2), (2, 3)]
