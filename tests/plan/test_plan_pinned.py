"""Plans of shipped compositions, pinned word for word: whatever makes planning faster or tidier keeps their order.

`python tests/plan/test_plan_pinned.py` writes tests/plan/pinned anew, for a change that is meant to change them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from zippkit.loading import load_spec
from zippkit.plan.graph import build_graph
from zippkit.plan.plan import Plan, Wanted, build_plan
from zippkit.spec.task import linked_tasks

HERE = Path(__file__).parent
COMPOSITIONS = HERE.parents[1] / "recipes" / "compositions"
PINNED = ("zipper_three_towers", "mixture_of_transformers", "coca", "qformer", "pali", "dgslm")


def planned(name: str) -> str:
    """The whole plan, and what each linked task leaves of it by number; then what every operation needs."""
    graph = build_graph(load_spec(COMPOSITIONS / f"{name}.yaml"))
    plan = build_plan(graph)
    number = {op: i for i, op in enumerate(plan.ops)}
    towers = {modality: at.tower for modality, at in graph.modalities.items()}

    def needs(of: Plan) -> str:
        return "\n".join(f"{number[op]} {sorted(number[each] for each in before)}" for op, before in of.needs)

    pages = [str(plan), needs(plan)]
    for task in linked_tasks(load_spec(COMPOSITIONS / f"{name}.yaml")):
        sees = {(towers[later], towers[earlier]) for later, earlier in task.sees()}
        pages += [str(task), needs(plan.prune(Wanted({towers[each] for each in task.targets}, sees)))]
    return "\n\n".join(pages) + "\n"


@pytest.mark.parametrize("name", PINNED)
def test_its_plan_is_what_it_was(name: str) -> None:
    assert planned(name) == (HERE / "pinned" / f"{name}.txt").read_text()


if __name__ == "__main__":
    for each in PINNED:
        (HERE / "pinned" / f"{each}.txt").write_text(planned(each))
