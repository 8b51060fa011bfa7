"""What generation is defined as, whatever the links: for each new token, the whole sequence once more."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch

from helpers.compositions import link, make, tower
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.plan.plan import Wanted
from zippkit.plan.sequence_layout import turns


@torch.no_grad()
def sharp(zipped: Composition) -> Composition:
    """In float64, where no two tokens are equally likely, and so that an answer depends on all that is read."""
    for name, parameter in zipped.model.double().eval().named_parameters():
        parameter.mul_(0.1 if name.endswith("bias") else 2.0 if parameter.dim() == 2 else 1.0)
    return zipped


@cache
def two(max_len: int | None = None) -> Composition:
    """Two towers that read each other, in float64; few ids, so that segments end by themselves now and then."""
    towers = {
        "text": tower(2, 8, 8, {"max_len": max_len, "tied": False}, input_projection={"depth": 1}),
        "speech": tower(
            3, 12, 7, {"max_len": max_len, "tied": False, "n_kv_heads": 1}, input_projection={"residual": False}
        ),
    }
    return sharp(make(towers, [link("speech", "text", every=1), link("text", "speech", every=2)]))


@torch.inference_mode()
def greedy(zipped: Composition, prompt: Sequence[Segment], outputs: Sequence[str], max_tokens: int) -> list[Segment]:
    """New segments of towers without a limit; neighbours with one clock advance and end together."""
    row, towers = list(prompt), zipped.graph.towers
    for turn in turns(outputs, zipped.graph.layout):
        new: dict[str, list[int]] = {name: [] for name in turn}
        for _ in range(max_tokens):
            batch = zipped.collate([[*row, *(Segment(name, tokens) for name, tokens in new.items())]])
            plan = zipped.plan.prune(Wanted(heads=set(turn), sees=batch.sees))
            logits = zipped.model.run(plan, batch.towers, batch.multimodal)
            # The end that closes the segment comes after the place that is looked at.
            chosen = {name: int(logits[name][0, -2].argmax()) for name in turn}
            frames = {name: towers[name].frame for name in turn}
            if any(frame is not None and chosen[name] == frame.end for name, frame in frames.items()):
                break
            for name, token in chosen.items():
                new[name].append(token)
        row += [Segment(name, tokens) for name, tokens in new.items()]
    return row[len(prompt) :]
