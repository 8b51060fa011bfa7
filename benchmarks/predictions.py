"""Predicted steps of a large composition on 8 to 4,096 accelerators, as a table and docs/growth/ranks.svg.

    python benchmarks/predictions.py

A frozen text tower of 8 billion parameters (Llama 3.1's sizes) reads a trained speech tower of 1 billion after every
fourth layer, on H100s in nodes of 8: what `zippkit sizes SPEC --ranks N` tells, for three ways to divide it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drawing import Line, Panel, draw

from zippkit.report.division import Division
from zippkit.report.hardware import known
from zippkit.report.rank_sizes import RankCost, Step, rank_sizes
from zippkit.spec.composition_spec import CompositionSpec

TEXT = {"vocab_size": 128256, "dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "ffn_dim": 14336}
SPEECH = {"vocab_size": 1026, "dim": 2048, "n_layers": 16, "n_heads": 16, "ffn_dim": 8192}
RANKS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
WAYS: dict[str, dict[str, Any]] = {
    "shard: trained": {"shard": "trained"},
    "shard: all": {"shard": "all"},
    "shard: all, replicas of 8 ranks": {"shard": "all", "replicas": 8},
    "shard: none": {"shard": "none"},
}
ROWS = 8


def spec() -> CompositionSpec:
    text = {"kind": "decoder", "config": TEXT, "frame": {"begin": 1, "end": 2}, "freeze": True, "dtype": "bf16"}
    speech = {"kind": "decoder", "config": SPEECH, "frame": {"begin": 1024, "end": 1025}}
    link = {"kind": "gated_cross_attention", "from": "speech", "into": "text", "every": 4, "config": {"n_heads": 32}}
    data = {"name": "large_pair", "towers": {"text": text, "speech": speech}, "links": [link]}
    return CompositionSpec.model_validate(data)


def divisions(way: dict[str, Any]) -> list[Division]:
    """With replicas, each node of 8 is one."""
    return [Division(n, **{**way, **({"replicas": n // 8} if "replicas" in way else {})}) for n in RANKS]


def table(found: dict[str, list[RankCost]]) -> str:
    lines = ["| | ranks | GiB on a rank | products, ms | collectives, ms | step, ms | tokens/s |", "|---" * 7 + "|"]
    for way, costs in found.items():
        for cost in costs:
            if cost.ranks in (8, 64, 512, 4096):
                step = f"{1e3 * cost.least:,.0f} to {1e3 * cost.most:,.0f}"
                rate = " to ".join(f"{each / 1e6:,.2f} M" for each in cost.tokens_per_second)
                times = f"{1e3 * cost.compute:,.0f} | {1e3 * cost.communication:,.0f} | {step} | {rate}"
                lines.append(f"| `{way}` | {cost.ranks} | {cost.memory / 2**30:.1f} | {times} |")
    return "\n".join(lines)


def main() -> None:
    made = spec()
    step = Step(rows=ROWS, narrow=True, recompute=True)
    found = {
        way: rank_sizes(made, divisions(given), known("h100"), step, None, 1022, 1022) for way, given in WAYS.items()
    }
    print(table(found))
    seconds = [Line(way, [(c.ranks, c.most) for c in costs]) for way, costs in found.items()]
    memory = [Line(way, [(c.ranks, c.memory / 2**30) for c in costs]) for way, costs in found.items()]
    panels = [
        Panel("seconds of a step, nothing at once", "accelerators", seconds),
        Panel("GiB on each", "accelerators", memory),
    ]
    draw(panels, Path(__file__).parents[1] / "docs" / "growth" / "ranks.svg")


if __name__ == "__main__":
    main()
