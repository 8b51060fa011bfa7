"""Compositions of random weights in the sizes that are measured."""

from __future__ import annotations

from typing import Any

import torch

import zippkit
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.spec.composition_spec import CompositionSpec

TOWERS: dict[str, dict[str, Any]] = {
    "1b": {"vocab_size": 128256, "dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "ffn_dim": 8192},
    "smollm2-135m": {"vocab_size": 49152, "dim": 576, "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "ffn_dim": 1536},
    "speech-135m": {"vocab_size": 1026, "dim": 768, "n_layers": 16, "n_heads": 12, "ffn_dim": 2688},
    "speech-6m": {"vocab_size": 1026, "dim": 256, "n_layers": 6, "n_heads": 8},
    "toy": {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 2},
}
"""Llama-3.2-1B's and SmolLM2-135M's sizes, and speech towers to go with them."""
PAIRS = {"1b+135m": ("1b", "speech-135m"), "smollm2-135m": ("smollm2-135m", "speech-6m"), "toy": ("toy", "toy")}


def zipper(pair: str, frozen: bool, device: str, dtype: str = "fp32") -> Composition:
    """Text that reads speech four times, drawn where it is to run: a billion numbers take a CPU half a minute."""
    text, speech = (TOWERS[name] for name in PAIRS[pair])
    tower = {"kind": "decoder", "config": text, "frame": {"begin": 1, "end": 2}, "freeze": frozen, "dtype": dtype}
    top = speech["vocab_size"] - 2
    heard = {"kind": "decoder", "config": speech, "frame": {"begin": top, "end": top + 1}}
    every = max(1, text["n_layers"] // 4)
    link = {"kind": "gated_cross_attention", "from": "speech", "into": "text", "every": every,
            "config": {"n_heads": text["n_heads"]}}  # fmt: skip
    data = {"name": "zipper", "towers": {"text": tower, "speech": heard}, "links": [link]}
    with torch.device(device):
        return zippkit.compile(CompositionSpec.model_validate(data))


def examples(zipped: Composition, n: int, speech: int, text: int, mixed: bool) -> list[list[Segment]]:
    """Rows of speech and the text that is learnt, of one length with begin and end, or of an eighth of it upwards."""
    numbers = torch.Generator().manual_seed(0)

    def ids(tower: str, length: float) -> list[int]:
        most = (zipped.graph.towers[tower].vocab_size or 0) - 2
        return torch.randint(3, most, (max(1, int(length) - 2),), generator=numbers).tolist()

    parts = [(1 + i % 8) / 8 if mixed else 1.0 for i in range(n)]
    return [
        [Segment("speech", ids("speech", p * speech), loss=False), Segment("text", ids("text", p * text))]
        for p in parts
    ]
