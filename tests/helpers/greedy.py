"""What generation is defined as, whatever the links: for each new token, the whole sequence once more."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.plan.sequence_layout import turns


@torch.no_grad()
def sharp(zipped: Composition) -> Composition:
    """In float64, where no two tokens are equally likely, and so that an answer depends on all that is read."""
    for name, parameter in zipped.model.double().eval().named_parameters():
        parameter.mul_(0.1 if name.endswith("bias") else 2.0 if parameter.dim() == 2 else 1.0)
    return zipped


@torch.inference_mode()
def greedy(zipped: Composition, prompt: Sequence[Segment], outputs: Sequence[str], max_tokens: int) -> list[Segment]:
    """New segments of towers without a limit; neighbours with one clock advance and end together."""
    row, towers = list(prompt), zipped.graph.towers
    multimodal = len({segment.tower for segment in prompt} | set(outputs)) > 1
    for turn in turns(outputs, zipped.graph.layout):
        new: dict[str, list[int]] = {name: [] for name in turn}
        for _ in range(max_tokens):
            batch = zipped.collate([[*row, *(Segment(name, tokens) for name, tokens in new.items())]])
            plan = zipped.plan.prune(heads=set(turn), sees=batch.sees)
            logits = zipped.model.run(plan, batch.towers, multimodal)
            # The end that closes the segment comes after the place that is looked at.
            chosen = {name: int(logits[name][0, -2].argmax()) for name in turn}
            frames = {name: towers[name].frame for name in turn}
            if any(frame is not None and chosen[name] == frame.end for name, frame in frames.items()):
                break
            for name, token in chosen.items():
                new[name].append(token)
        row += [Segment(name, tokens) for name, tokens in new.items()]
    return row[len(prompt) :]
