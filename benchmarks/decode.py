"""Seconds of one generated token: the zipped model against the tower alone, ours and transformers' own.

    python benchmarks/decode.py --out benchmarks/decode.json

The tower alone is a spec's text tower without its links, and the same llama in transformers, run by its ``generate``.
``peers.yaml`` is small, and half as much again in links; ``smollm2_size.yaml`` is as large as what people zip. All
three are timed in turn, so that whatever else the machine does falls on all; a token's time is the difference of two
lengths, so that prompts and start-up fall out; medians. The limit is the bytes of weights that a step at batch 1 must
read, against the tower's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import zippkit
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.generation.api import generate_batch

HERE = Path(__file__).parent
SPECS = [HERE / "peers.yaml", HERE / "smollm2_size.yaml"]
SHORT, LONG = 32, 96
"""Tokens of the two lengths."""


def zipped_and_alone(file: Path) -> tuple[Composition, Composition]:
    """The composition, and its text tower by itself; neither ever likes its end id best."""
    spec = zippkit.load_spec(file)
    alone = spec.model_copy(update={"name": "alone", "towers": {"text": spec.towers["text"]}, "links": []})
    made = zippkit.compile(spec), zippkit.compile(alone)
    for each in made:
        tower: Any = each.model.tower("text")
        with torch.no_grad():
            tower.embed_tokens.weight[each.graph.towers["text"].frame.end] = 0
    return made


def llama(alone: Composition) -> Any:
    """The same tower in transformers, with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tower: Any = alone.model.tower("text")
    config = tower.config
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.ffn_width,
            num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads, tie_word_embeddings=True,
            num_key_value_heads=config.n_kv_heads or config.n_heads, head_dim=config.head_width,
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )
    )  # fmt: skip
    made.model.load_state_dict(tower.state_dict())
    return made.eval()


def runs(file: Path, batch: int, source_tokens: int) -> dict[str, Callable[[int], object]]:
    zipped, alone = zipped_and_alone(file)
    own = llama(alone)
    numbers = torch.Generator().manual_seed(0)
    units = torch.randint(0, 1024, (batch, source_tokens), generator=numbers).tolist()
    heard = [[Segment("speech", row)] for row in units]
    given = torch.full((batch, 1), zipped.graph.towers["text"].frame.begin)  # type: ignore[union-attr]
    return {
        "zipped": lambda n: generate_batch(zipped, heard, ["text"], n),
        "alone": lambda n: generate_batch(alone, [[]] * batch, ["text"], n),
        "transformers": lambda n: own.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=n, do_sample=False
        ),
    }


def seconds(run: Callable[[int], object], n_tokens: int) -> float:
    began = time.perf_counter()
    run(n_tokens)
    return time.perf_counter() - began


def measured(file: Path, batch: int, source_tokens: int, repeats: int) -> dict[str, float]:
    made = runs(file, batch, source_tokens)
    for run in made.values():
        run(2)
    found: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(repeats):
        for name, run in made.items():
            found[name].append((seconds(run, LONG) - seconds(run, SHORT)) / (LONG - SHORT))
    medians = {name: statistics.median(times) for name, times in found.items()}
    ratios = {
        f"zipped_over_{name}": statistics.median(
            mine / theirs for mine, theirs in zip(found["zipped"], found[name], strict=True)
        )
        for name in ("alone", "transformers")
    }
    ratios["alone_over_transformers"] = statistics.median(
        mine / theirs for mine, theirs in zip(found["alone"], found["transformers"], strict=True)
    )
    rates = {f"{name}_tokens_per_second": batch / median for name, median in medians.items()}
    return {"batch": batch, "source_tokens": source_tokens, **rates, **ratios}


def least(file: Path) -> dict[str, float]:
    """Weights that one step reads: of the tower, and of what its links read with (not of what they wrote with)."""
    zipped, _ = zipped_and_alone(file)
    tower = sum(p.numel() for p in zipped.model.tower("text").parameters())
    written = ("key", "value", "projection", "source_norm")
    read = sum(
        p.numel() for name, p in zipped.model.links.named_parameters() if not any(part in name for part in written)
    )
    return {"tower": tower, "links": read, "zipped_over_alone": (tower + read) / tower}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", type=Path, default=SPECS, help="with decoders `text` and `speech`")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "load": os.getloadavg()[0]},
        "threads": args.threads,
        "specs": {
            file.stem: {
                "weights_read": least(file),
                "cases": [measured(file, batch, n, args.repeats) for n in (256, 1024) for batch in (1, 8)],
            }
            for file in args.specs
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
