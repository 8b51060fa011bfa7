"""Tiny specs, and compositions whose links are not the identity, that the tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import zippkit
from zippkit.batch.batch import Batch, Segment
from zippkit.spec.composition_spec import CompositionSpec

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"

SPEC = """\
name: tiny
towers:
  text:
    kind: decoder
    config: {vocab_size: 20, dim: 16, n_layers: 4, n_heads: 2}
    frame: {begin: 18, end: 19}
    freeze: true
  speech:
    kind: decoder
    config: {vocab_size: 30, dim: 24, n_layers: 6, n_heads: 2}
    frame: {begin: 28, end: 29}
links:
  - {kind: gated_cross_attention, from: speech, into: text, every: 2, config: {n_heads: 2}}
  - {kind: gated_cross_attention, from: text, into: speech, every: 3, config: {n_heads: 2}}
"""
"""A sound spec; the tests break it line by line."""


def tower(n_layers: int = 4, dim: int = 16, vocab_size: int = 20, config: Any = None, **more: Any) -> dict[str, Any]:
    """A decoder whose last two ids are its frame."""
    settings = {"vocab_size": vocab_size, "dim": dim, "n_layers": n_layers, "n_heads": 2, "ffn_dim": 2 * dim}
    frame = {"begin": vocab_size - 2, "end": vocab_size - 1}
    return {"kind": "decoder", "config": settings | (config or {}), "frame": frame, **more}


def link(source: str, target: str, /, **more: Any) -> dict[str, Any]:
    """A gated cross-attention; ``into`` and ``from`` cannot be Python keywords."""
    base = {"kind": "gated_cross_attention", "from": source, "into": target, "config": {"n_heads": 2, "ffn_mult": 2}}
    return base | more


def make_spec(towers: dict[str, Any], links: list[dict[str, Any]] | None = None) -> CompositionSpec:
    return CompositionSpec.model_validate({"name": "tiny", "towers": towers, "links": links or []})


def make(towers: dict[str, Any], links: list[dict[str, Any]] | None = None) -> zippkit.Composition:
    """A composition whose every parameter is random, gates included, so that its links do something."""
    zipped = zippkit.compile(make_spec(towers, links))
    randomise(zipped.model)
    return zipped


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter to a random value of a size at which states neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        is_scale = "norm" in name and name.endswith("weight")
        width = parameter.shape[-1] if parameter.dim() == 2 and "embed" not in name else 1
        parameter.copy_(1 + 0.2 * noise if is_scale else noise / width**0.5)


def bucketed(zipped: zippkit.Composition, seed: int) -> Batch:
    """Other lengths and tokens for each seed, in buckets of one shape; rows of one and of two modalities."""
    numbers = torch.Generator().manual_seed(seed)

    def segment(name: str) -> Segment:
        length = int(torch.randint(1, 6, (), generator=numbers))
        return Segment(name, torch.randint(0, 18, (length,), generator=numbers))

    rows = [["speech", "text"], ["text", "speech", "text"], ["text"], ["speech"]]
    examples = [[segment(name) for name in row] for row in rows]
    return zipped.collate(examples, 16, [f"{seed}.{i}" for i in range(4)], [len(row) > 1 for row in rows])
