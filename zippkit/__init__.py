"""zippkit composes independently pre-trained towers into one multimodal model, from a YAML spec."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zippkit.batch import Segment as Segment
    from zippkit.certificates import verify as verify
    from zippkit.composition import Composition as Composition
    from zippkit.composition import compile as compile
    from zippkit.composition import load as load
    from zippkit.config import Sampling as Sampling
    from zippkit.errors import SpecError as SpecError
    from zippkit.errors import ZippkitError as ZippkitError
    from zippkit.generation import generate as generate
    from zippkit.generation import generate_batch as generate_batch
    from zippkit.generation import stream as stream
    from zippkit.loading import load_spec as load_spec
    from zippkit.model_diff import diff as diff
    from zippkit.sizing import sizes as sizes
    from zippkit.spec import CompositionSpec as CompositionSpec

# Imported on first use: `zippkit check` must not wait for torch.
_HOMES = {
    "Composition": "composition",
    "CompositionSpec": "spec",
    "Sampling": "config",
    "Segment": "batch",
    "SpecError": "errors",
    "ZippkitError": "errors",
    "compile": "composition",
    "diff": "model_diff",
    "generate": "generation",
    "generate_batch": "generation",
    "load": "composition",
    "load_spec": "loading",
    "sizes": "sizing",
    "stream": "generation",
    "verify": "certificates",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zippkit' has no attribute {name!r}")
    return getattr(import_module(f"zippkit.{_HOMES[name]}"), name)
