"""Train and decode throughput, share of the GEMM rate, and peak memory of a spec; JSON out. See README.md here."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import zippkit
from zippkit.batch.batch import Batch, Segment
from zippkit.composition import Composition
from zippkit.generation.api import generate_batch
from zippkit.model.linear import FLOPS
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.phase import Phase
from zippkit.training.device import backend
from zippkit.training.optimizer import build_optimizer
from zippkit.training.step import build_step

Time = Callable[[], Any]


def seconds(run: Time, repeats: int, warm: int = 2) -> float:
    """Median seconds of one call."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def gemm_rate(n: int = 1024) -> float:
    """Floating-point operations per second of an fp32 matrix product."""
    a, b = torch.randn(n, n), torch.randn(n, n)
    return 2 * n**3 / seconds(lambda: a @ b, 20, warm=5)


def make_batch(zipped: Composition, args: argparse.Namespace) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def tokens(tower: str, n: int) -> list[int]:
        config = zipped.graph.towers[tower]
        frame = config.frame
        ids = [i for i in range(config.vocab_size or 0) if frame is None or i not in (frame.begin, frame.end)]
        return [ids[i] for i in torch.randint(len(ids), (n - 2,), generator=generator).tolist()]

    source, target = args.task
    rows = [
        [Segment(source, tokens(source, args.source_len), loss=False), Segment(target, tokens(target, args.target_len))]
        for _ in range(args.batch)
    ]
    return zipped.collate(rows)


def train_figures(zipped: Composition, batch: Batch, args: argparse.Namespace, gemm: float) -> dict[str, float]:
    phase = Phase(steps=1, learning_rate=1e-3, precision=args.precision)
    optimizer = build_optimizer(zipped.model.train(), learning_rates(zipped.spec, phase), phase)
    step = build_step(zipped.model, optimizer, phase, backend("cpu"))
    step(batch)
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
        step(batch)
    pruned = seconds(lambda: step(batch), args.repeats)

    model = zipped.model

    def whole() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.precision == "bf16"):
            logits = model.run(model.plan, batch.towers, batch.multimodal)
            losses = zipped.loss({name: logits[name] for name in batch.outputs}, batch)
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()

    # Without the marks of the plan, only autograd decides where a gradient is kept.
    marks, model._gradient_free = model._gradient_free, lambda plan: frozenset()
    unpruned = seconds(whole, args.repeats)
    model._gradient_free = marks
    flops = counter.get_total_flops()
    return {
        "step_seconds": pruned,
        "tokens_per_second": batch.n_tokens / pruned,
        "gflop_per_step": flops / 1e9,
        "share_of_gemm": flops / pruned / gemm,
        "unpruned_over_pruned": unpruned / pruned,
    }


def decode_figures(zipped: Composition, batch: Batch, args: argparse.Namespace) -> dict[str, float]:
    source, target = args.task
    found = {}
    for rows in (1, 8):
        units = batch.towers[source].tokens[:1, 1:-1].tolist() * rows
        prompts = [[Segment(source, unit)] for unit in units]

        def run(prompts: list[list[Segment]] = prompts) -> list[int]:
            return [len(row[0].tokens) for row in generate_batch(zipped, prompts, [target], args.target_len)]

        n_tokens = sum(n + 1 for n in run())
        found[f"b{rows}"] = n_tokens / seconds(run, args.repeats)
        found[f"b{rows}_tokens"] = n_tokens
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", default="recipes/demo/spec.yaml")
    parser.add_argument("--task", nargs=2, default=("speech", "text"), metavar=("FROM", "INTO"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--source-len", type=int, default=64)
    parser.add_argument("--target-len", type=int, default=16)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    zipped = zippkit.compile(zippkit.load_spec(args.spec))
    batch = make_batch(zipped, args)
    gemm = gemm_rate()
    train = train_figures(zipped, batch, args, gemm)
    decode = decode_figures(zipped, batch, args)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {
        "spec": args.spec,
        "settings": {key: getattr(args, key) for key in ("batch", "source_len", "target_len", "precision", "threads")},
        "machine": {"processor": platform.processor() or platform.machine(), "load": os.getloadavg()[0]},
        "torch": torch.__version__,
        "gemm_gflops": gemm / 1e9,
        "gemm_gflops_after": gemm_rate() / 1e9,
        "train": train,
        "decode": decode,
        "peak_memory_mib": (after - before) / 1024,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
