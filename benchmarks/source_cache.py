"""Seconds of a training step with and without kept source states, at SmolLM2-135M's size, and of its first epoch.

    python benchmarks/source_cache.py --encoder wav2vec2 --seconds 10 --batch 8 --folder /big/disk

A frozen text tower of that size reads a frozen encoder (random weights: its time is the same) after every tenth layer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zippkit
from zippkit.batch.batch import Batch, Segment
from zippkit.composition import Composition
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.phase import Phase
from zippkit.training.device import CPU
from zippkit.training.optimizer import build_optimizer
from zippkit.training.source_cache import SourceCache
from zippkit.training.state_store import DTYPES, StateStore
from zippkit.training.step import build_step

ENCODERS: dict[str, dict[str, Any]] = {
    "whisper": {"model_type": "whisper", "d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6}
    | {"encoder_ffn_dim": 1536, "decoder_layers": 1, "num_mel_bins": 80, "max_source_positions": 1500},
    "wav2vec2": {"model_type": "wav2vec2"},
}
"""Whisper tiny, and wav2vec2-base, transformers' default."""
TEXT_TOKENS = 30


def composed(encoder: str) -> Composition:
    """The text tower of `smollm2_size.yaml`, frozen, with an encoder to read."""
    text = zippkit.load_spec(Path(__file__).parent / "smollm2_size.yaml").towers["text"]
    speech = {"kind": "hf_encoder", "freeze": True, "config": {"model": ENCODERS[encoder], "sample_rate": 16000}}
    link = {"kind": "gated_cross_attention", "from": "speech", "into": "text", "every": 10, "config": {"n_heads": 9}}
    if encoder == "whisper":
        link["source"] = "final"
    towers = {"text": text, "speech": speech}
    return zippkit.compile(CompositionSpec.model_validate({"name": "hears", "towers": towers, "links": [link]}))


def batches(zipped: Composition, n: int, size: int, seconds: float) -> list[Batch]:
    """Batches of noise up to so many seconds long."""
    numbers = np.random.default_rng(0)

    def row() -> list[Segment]:
        wave = numbers.uniform(-0.1, 0.1, int(16000 * seconds)).astype(np.float32)
        return [Segment("speech", wave), Segment("text", numbers.integers(3, 49152, TEXT_TOKENS))]

    return [zipped.collate([row() for _ in range(size)], 16) for _ in range(n)]


def timed(act: Callable[[Batch], Any], over: list[Batch]) -> tuple[float, float]:
    """Median seconds of one batch: on the clock, and of all threads together."""
    clock, cpu = [], []
    for batch in over:
        began, worked = time.perf_counter(), time.process_time()
        act(batch)
        clock.append(time.perf_counter() - began)
        cpu.append(time.process_time() - worked)
    return statistics.median(clock), statistics.median(cpu)


def forget(folder: Path) -> None:
    """Have the system drop what it holds of a folder's files in memory."""
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as stream, suppress(OSError):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(files: list[int], batch: int, seconds: tuple[float, float]) -> float:
    """MB a second."""
    return statistics.mean(files) * batch / seconds[0] / 1e6


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=ENCODERS, default="wav2vec2")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--folder", type=Path, default=None, help="Where to write; a temporary folder if left out.")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    zipped = composed(options.encoder)
    zipped.model.train()
    phase = Phase(steps=1, precision=options.precision)
    optimizer = build_optimizer(zipped.model, learning_rates(zipped.spec, phase), phase)
    step = build_step(zipped.model, optimizer, phase, CPU())
    cache = SourceCache(zipped, StateStore(folder, DTYPES[options.dtype]), CPU(), options.precision)
    first, *given = batches(zipped, options.steps + 1, options.batch, options.seconds)
    began = time.perf_counter()
    cache.entries(first)
    hashing = time.perf_counter() - began
    step(first)
    plain = timed(step, given)
    writing = timed(lambda batch: step(cache.complete(batch)), given)
    files = [file.stat().st_size for file in folder.rglob("*.safetensors")]
    forget(folder)
    cold = timed(cache.read, given)
    reading = timed(cache.read, given)
    kept = timed(lambda batch: step(cache.complete(batch)), given)
    shutil.rmtree(folder)
    found = {
        "encoder": options.encoder,
        "how": f"batch {options.batch}, {options.seconds:g} s of sound, {options.precision}, kept in {options.dtype}",
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "seconds of hashing weights, once": hashing,
        "seconds of a step (clock, cpu)": {"computed": plain, "first epoch": writing, "kept": kept},
        "seconds of reading a batch (clock, cpu)": {"from the disk": cold, "from memory": reading},
        "bytes an example": statistics.mean(files),
        "MB a second of reading": {
            "from the disk": rate(files, options.batch, cold),
            "from memory": rate(files, options.batch, reading),
        },
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
