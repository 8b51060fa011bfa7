"""Errors of a claim: names that are not there, and comparisons that say too little or too much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zippkit.errors import did_you_mean
from zippkit.experiment.format import Claim, Experiment
from zippkit.spec.validation import Complaint
from zippkit.spec.words import Name
from zippkit.spec.yaml_document import KeyPath


def unknown(place: KeyPath, names: Sequence[Name], known: Mapping[str, Any], what: str) -> Iterator[Complaint]:
    """A complaint for each name that is not known."""
    return ((place, f"no {what} is called {name!r}{did_you_mean(name, known)}") for name in names if name not in known)


def claim_complaints(experiment: Experiment, claim: Claim) -> Iterator[Complaint]:
    """Everything that is wrong with one claim."""
    named = {"metric": claim.metric, "than_metric": claim.than_metric}
    for key, name in named.items():
        yield from unknown((key,), [name] if name else [], experiment.metrics, "metric")
    yield from unknown(("group",), claim.group, experiment.cells, "cell")
    yield from unknown(("than",), claim.than, experiment.cells, "cell")
    yield from _other_side(claim)
    yield from _margins(claim)
    units = {experiment.metrics[name].percent for name in named.values() if name in experiment.metrics}
    if len(units) > 1:
        yield ("than_metric",), "a word error rate and a loss (nats per token) cannot be compared"
    elif claim.by and False in units:
        yield ("by",), "a part of a change of loss, which may be 0, says nothing; use `within` or `than_value`"
    yield from _place_on_axis(experiment, claim)


def _other_side(claim: Claim) -> Iterator[Complaint]:
    """`unchanged` has no other side, every other relation has one of two kinds."""
    given = [key for key in ("than", "than_value") if getattr(claim, key) not in ([], None)]
    if claim.is_ == "unchanged":
        yield from (((key,), "unchanged compares with 0; remove it") for key in given)
    elif not given:
        yield ("than",), f"what is it {claim.is_}? name cells, or a number as `than_value`"
    elif len(given) == 2:
        yield ("than_value",), "`than` is given too; remove one of the two"
    elif claim.than_value is not None and (claim.than_metric or claim.of == "best_at"):
        yield ("than_value",), "a number stands for the metric's value; remove `than_metric` and `of: best_at`"


def _margins(claim: Claim) -> Iterator[Complaint]:
    if claim.is_ == "near" and not claim.within:
        yield ("within",), "near needs `within`, the difference that does not matter"
    if claim.by and (claim.is_ not in ("below", "above") or claim.of == "best_at" or claim.within):
        yield ("by",), "a relative margin goes with `below` and `above` of a value, and without `within`"
    elif claim.by >= 1 and claim.is_ == "below":
        yield ("by",), "nothing can be less by all of it; 0.25 is a quarter less"


def _place_on_axis(experiment: Experiment, claim: Claim) -> Iterator[Complaint]:
    axis = experiment.axis
    if axis is None:
        if claim.at is not None or claim.of == "best_at":
            yield ("at" if claim.at is not None else "of",), "the experiment has no axis"
        return
    known = {*axis.values, *(value for preset in experiment.presets.values() for value in preset.values or ())}
    if (claim.at is None) == (claim.of == "value"):
        yield ("at",), "with an axis, a claim is `at` one of its values, or `of: best_at`"
    elif claim.at is not None and claim.at not in known:
        yield ("at",), f"{claim.at:g} is not on the axis; its values: {', '.join(f'{v:g}' for v in sorted(known))}"
