"""What is asked of a generation, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zippkit.composition import Composition
from zippkit.errors import DataError, ZippkitError, did_you_mean
from zippkit.generation.request import Prompt
from zippkit.plan.sequence_layout import turns
from zippkit.spec.sampling import Sampling


def choices(zipped: Composition, prompts: Sequence[Prompt]) -> list[str]:
    """Modalities that a model with `next` can choose from."""
    if not zipped.graph.layout.tells_next:
        raise ZippkitError(
            'outputs "auto": the model was not trained to tell what comes next; put `next: {}` in its spec'
        )
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ZippkitError(
                f'outputs "auto": prompt {i} is empty; expected a segment, whose end tells what comes next'
            )
    towers = zipped.graph.towers
    return [n for n, m in zipped.graph.modalities.items() if m.frame is not None and towers[m.tower].causal]


def check_outputs(zipped: Composition, names: Sequence[str]) -> None:
    """Refuse modalities that cannot be generated."""
    modalities = zipped.graph.modalities
    for name in names:
        if name not in modalities:
            raise ZippkitError(f"outputs: no tower is called {name!r}{did_you_mean(name, modalities)}")
        if not zipped.graph.towers[modalities[name].tower].causal:
            raise ZippkitError(f"outputs: {name!r} is not causal, so it cannot generate")
        if modalities[name].frame is None:
            raise ZippkitError(f"{name} has no begin and end ids, so it cannot generate")


def check_settings(
    zipped: Composition, names: Sequence[str], ways: Mapping[str, Sampling], limits: Mapping[str, int]
) -> None:
    """Refuse settings that name no modality, or leave one out."""
    for what, given in (("sampling", ways), ("max_tokens", limits)):
        for name in given:
            if name not in zipped.graph.modalities:
                raise ZippkitError(f"{what}: no tower is called {name!r}{did_you_mean(name, zipped.graph.modalities)}")
    for name in names:
        if name not in limits:
            raise ZippkitError(f"max_tokens: nothing for {name!r}; expected a number for each output")
        if type(limits[name]) is not int or limits[name] < 0:
            raise ZippkitError(f"max_tokens: expected a whole number, 0 or more, got {limits[name]!r}")


def check_turns(zipped: Composition, where: str, given: Sequence[str], outputs: Sequence[str]) -> None:
    """Refuse outputs of which the first would be one turn with the prompt's last segment."""
    layout = zipped.graph.layout
    if outputs and turns([*given, *outputs], layout) != [*turns(given, layout), *turns(outputs, layout)]:
        raise DataError(
            f"{where} ends with a segment of {given[-1]!r}, and {outputs[0]!r} next to it would be simultaneous "
            "(`clock: sync`); expected both in the prompt, or both in the outputs"
        )
