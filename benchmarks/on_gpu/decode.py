"""Generated tokens per second against the limit of memory: bytes of weights and caches that a step must read."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from on_gpu.place import Place, Rates, Row, rates, shares, tried
from on_gpu.specs import examples, zipper
from zippkit.composition import Composition
from zippkit.generation.api import generate_batch
from zippkit.report.sizes import sizes

WRITES = ("key", "value", "projection", "source_norm")
"""Parts of a link that only write its memory, once for a prompt."""


def decode(place: Place) -> Iterator[Row]:
    """Batches of 1, 8 and 64, each composition once."""
    found = rates(place)
    for pair in ("toy",) if place.toy else ("smollm2-135m", "1b+135m"):
        zipped = _ready(place, pair)
        for batch in (1, 2) if place.toy else (1, 8, 64):
            for ways in _ways():
                case = {"composition": pair, "batch": batch} | {f"option {key}": value for key, value in ways.items()}
                yield tried(case, partial(_case, place, found, zipped, batch, ways))
        place.free()


def _ways() -> list[dict[str, Any]]:
    """Eager, and compiled (on a GPU, as CUDA graphs) where generation knows how."""
    knows = "compile" in inspect.signature(generate_batch).parameters
    return [{"compile": False}, {"compile": True}] if knows else [{}]


def _ready(place: Place, pair: str) -> Composition:
    """Frozen text in bf16, which never likes its end id best."""
    zipped = zipper(pair, True, place.device, dtype="bf16")
    tower: Any = zipped.model.tower("text")
    with torch.no_grad():
        tower.embed_tokens.weight[2] = 0
    return zipped


def bytes_per_step(zipped: Composition, batch: int, heard: int, written: int) -> float:
    """Weights of the tower and of what its links read with, and each row's caches, half filled, and memories."""
    tower = sum(p.nbytes for p in zipped.model.tower("text").parameters())
    links = sum(
        p.nbytes
        for name, p in zipped.model.get_submodule("links").named_parameters()
        if not any(part in name for part in WRITES)
    )
    kept = sizes(zipped.spec, [], heard)
    return tower + links + batch * (kept.cache["text"] * written / 2 + sum(kept.memory.values()) * heard)


def _case(place: Place, found: Rates, zipped: Composition, batch: int, ways: dict[str, Any]) -> Row:
    heard, short, long = (8, 2, 4) if place.toy else (256, 32, 160)
    prompts = [row[:1] for row in examples(zipped, batch, heard, 8, mixed=False)]

    def answer(n: int) -> None:
        generate_batch(zipped, prompts, ["text"], n, **ways)

    # The difference of two lengths has neither the prompt nor the start in it.
    some, more = place.seconds(partial(answer, short)), place.seconds(partial(answer, long))
    if more <= some and not place.toy:
        raise RuntimeError(f"{long} tokens took no longer than {short}: the machine is busy")
    seconds = abs(more - some) / (long - short)
    amount = bytes_per_step(zipped, batch, heard, short + long)
    return {
        "tokens_per_second": batch / seconds,
        "step_seconds": seconds,
        "mib_per_step": amount / 2**20,
        **shares(amount, seconds, found.stated_bytes, found.bytes),
        "peak_gib": place.peak_memory(),
    }
