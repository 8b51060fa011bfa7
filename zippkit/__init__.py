"""zippkit composes independently pre-trained towers into one multimodal model, from a YAML spec."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zippkit.batch.batch import Segment as Segment
    from zippkit.batch.batch import TowerBatch as TowerBatch
    from zippkit.composition import Composition as Composition
    from zippkit.composition import compile as compile
    from zippkit.composition import load as load
    from zippkit.data.speech_tokenizer import SpeechTokenizer as SpeechTokenizer
    from zippkit.errors import SpecError as SpecError
    from zippkit.errors import ZippkitError as ZippkitError
    from zippkit.evaluation.certificates import verify as verify
    from zippkit.evaluation.recognisers.base import Scorer as Scorer
    from zippkit.generation.api import generate as generate
    from zippkit.generation.api import generate_batch as generate_batch
    from zippkit.generation.api import stream as stream
    from zippkit.loading import load_spec as load_spec
    from zippkit.model.links.base import Link as Link
    from zippkit.model.links.base import Memory as Memory
    from zippkit.model.part_group import TowerParts as TowerParts
    from zippkit.model.tower import Tower as Tower
    from zippkit.report.model_diff import diff as diff
    from zippkit.report.sizes import sizes as sizes
    from zippkit.spec.composition_spec import CompositionSpec as CompositionSpec
    from zippkit.spec.kinds import LinkConfig as LinkConfig
    from zippkit.spec.kinds import TowerConfig as TowerConfig
    from zippkit.spec.sampling import Sampling as Sampling

# Imported on first use: `zippkit check` must not wait for torch.
_HOMES = {
    "Composition": "composition",
    "CompositionSpec": "spec.composition_spec",
    "Link": "model.links.base",
    "LinkConfig": "spec.kinds",
    "Memory": "model.links.base",
    "Sampling": "spec.sampling",
    "Scorer": "evaluation.recognisers.base",
    "Segment": "batch.batch",
    "SpecError": "errors",
    "SpeechTokenizer": "data.speech_tokenizer",
    "Tower": "model.tower",
    "TowerBatch": "batch.batch",
    "TowerConfig": "spec.kinds",
    "TowerParts": "model.part_group",
    "ZippkitError": "errors",
    "compile": "composition",
    "diff": "report.model_diff",
    "generate": "generation.api",
    "generate_batch": "generation.api",
    "load": "composition",
    "load_spec": "loading",
    "sizes": "report.sizes",
    "stream": "generation.api",
    "verify": "evaluation.certificates",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zippkit' has no attribute {name!r}")
    return getattr(import_module(f"zippkit.{_HOMES[name]}"), name)
