"""Flex attention against a table, over documents that share a row: forward and backward, by length."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from on_gpu.place import Place, Row, tried
from on_gpu.specs import zipper
from zippkit.batch.batch import Segment, TowerBatch
from zippkit.composition import Composition
from zippkit.model.visibility import own_visibility

DOCUMENTS = 8
"""In each row."""
TOKENS = 16384
"""Of all rows."""


def attention(place: Place) -> Iterator[Row]:
    """Every length, of as many tokens in all."""
    zipped = zipper("toy", True, "cpu")
    for length in (64,) if place.toy else (512, 1024, 2048, 4096, 8192, 16384):
        yield tried({"length": length}, partial(_case, place, zipped, length))
        place.free()


def packed(zipped: Composition, length: int, rows: int) -> TowerBatch:
    """Rows of documents, each causal by itself, as training packs them."""
    document = [Segment("text", [3] * (length // DOCUMENTS - 2))]
    return zipped.collate([document] * (rows * DOCUMENTS), pack=length).towers["text"]


def _case(place: Place, zipped: Composition, length: int) -> Row:
    rows = 1 if place.toy else max(1, TOKENS // length)
    dtype, width = (torch.float32, 16) if place.toy else (torch.bfloat16, 64)
    tokens = packed(zipped, length, rows).to(place.device)
    q, k, v = (
        # Without a GPU, flex attention has no gradient.
        torch.randn(rows, heads, length, width, device=place.device, dtype=dtype, requires_grad=not place.toy)
        for heads in (9, 3, 3)
    )
    seconds = {}
    for rendering in ("table", "flex"):
        seen = own_visibility(tokens, causal=True)
        assert seen is not None, "documents share rows"
        seen.rendering = rendering  # type: ignore[assignment]

        def run(seen: object = seen) -> None:
            out = seen.attend(q, k, v)  # type: ignore[attr-defined]
            if out.requires_grad:
                out.sum().backward()

        seconds[rendering] = place.seconds(run)
    return {
        "rows": rows,
        "table_seconds": seconds["table"],
        "flex_seconds": seconds["flex"],
        "table_over_flex": seconds["table"] / seconds["flex"],
        "peak_gib": place.peak_memory(),
    }
