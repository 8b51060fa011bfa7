"""Training in bf16: share of the device's rate, compiled and not, as CUDA graphs, packed and not."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from on_gpu.place import Place, Rates, Row, rates, shares, tried
from on_gpu.specs import examples, zipper
from zippkit.batch.batch import Batch
from zippkit.composition import Composition
from zippkit.model.meta_device import meta_model
from zippkit.report.sizes import count
from zippkit.spec.derived_recipe import learning_rates
from zippkit.spec.phase import Phase
from zippkit.training.optimizer import build_optimizer
from zippkit.training.step import build_step

CASES: tuple[Row, ...] = (
    {"rows": "equal", "compiled": False, "graphs": False},
    {"rows": "equal", "compiled": True, "graphs": False},
    {"rows": "equal", "compiled": True, "graphs": True},
    {"rows": "mixed", "compiled": False, "graphs": False},
    {"rows": "mixed", "compiled": True, "graphs": False},
    {"rows": "packed", "compiled": False, "graphs": False},
    {"rows": "packed", "compiled": True, "graphs": False},
)
TOY = (CASES[0], CASES[1], CASES[6])


def train(place: Place) -> Iterator[Row]:
    """Every case of every composition."""
    found = rates(place)
    pairs = (("toy", True),) if place.toy else (("smollm2-135m", False), ("1b+135m", True), ("1b+135m", False))
    for pair, frozen in pairs:
        zipped = zipper(pair, frozen, place.device)
        for case in TOY if place.toy else CASES:
            told = {"composition": pair, "text": "frozen" if frozen else "trained"} | case
            yield tried(told, partial(_case, place, found, zipped, case))
            place.free()
        del zipped
        place.free()


def _batch(place: Place, zipped: Composition, rows: str, n: int) -> Batch:
    speech, text = (16, 16) if place.toy else (1024, 1024)
    made = examples(zipped, n, speech, text, mixed=rows != "equal")
    return zipped.collate(made, 8 if place.toy else 128, pack=speech if rows == "packed" else None)


def _case(place: Place, found: Rates, zipped: Composition, case: Row) -> Row:
    large = zipped.graph.towers["text"].dim > 1000
    batch = _batch(place, zipped, case["rows"], 8 if place.toy or large else 32)
    forward, whole = count(meta_model(zipped.spec)[0].train(), batch.to("meta"))
    model, backend = zipped.model.train(), place.backend(case["graphs"])
    phase = Phase(steps=1, learning_rate=1e-4, precision="bf16", compile=case["compiled"])
    step = build_step(model, build_optimizer(model, learning_rates(zipped.spec, phase), phase), phase, backend)
    on_device = batch.with_places().to(place.device)
    seconds = place.seconds(lambda: step(on_device))
    return {
        "tokens_per_second": batch.n_tokens / seconds,
        "step_seconds": seconds,
        "tflop_per_step": whole / 1e12,
        **shares(whole, seconds, found.stated_operations, found.operations),
        "peak_gib": place.peak_memory(),
        "backward_over_forward": (whole - forward) / forward,
    }
