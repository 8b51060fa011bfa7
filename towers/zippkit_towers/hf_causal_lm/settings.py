"""Reads transformers' config of a decoder: sliding windows, sparse attention, sizes and scales."""

from __future__ import annotations

import re
from typing import Any

from zippkit.errors import CheckpointError

_SPARSE = re.compile(r"^index_|^block_size$|(?<=[a-z])_(window|chunk|local)(_|$)|^(window|chunk|local)_")
_NOT_SPARSE = (
    *("sliding_window", "sliding_window_pattern", "_sliding_window_pattern", "max_window_layers"),
    "prefix_dense_sliding_window_pattern",
    *("use_sliding_window", "chunk_size_feed_forward", "num_local_experts", "mamba_chunk_size"),
)
"""Settings with such names that are run, or that are about something else than attention."""


def refuse_sparse(hf: Any) -> None:
    """Refuse what limits attention in a way of its own: rows as short as those of the check would not show it.

    Raises:
        CheckpointError: names the setting.
    """
    for key, value in vars(hf).items():
        if _SPARSE.search(key) and key not in _NOT_SPARSE and value and value is not True:
            raise CheckpointError(
                f"a {hf.model_type!r} model limits its attention by {key} ({str(value)[:40]}), which is not run"
            )


def windows_of(hf: Any, n_layers: int) -> list[int | None]:
    """The sliding window of each layer; None where it sees everything.

    Raises:
        CheckpointError: layers of a kind that is not run, or a window that is no length.
    """
    window, kinds = getattr(hf, "sliding_window", None), getattr(hf, "layer_types", None) or []
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise CheckpointError(f"a {hf.model_type!r} model has layers of kind {', '.join(unknown)}, which are not run")
    windows = [window if kind == "sliding_attention" else None for kind in kinds or ["sliding_attention"] * n_layers]
    # A window that no layer has may be anything: Qwen2-MoE says 0 for none.
    if any(each is not None and (type(each) is not int or each < 1) for each in windows):
        raise CheckpointError(
            f"a {hf.model_type!r} model has sliding_window {window!r}; expected a whole number above 0, or null"
        )
    return windows


def layer_kinds(hf: Any, n_layers: int) -> list[str]:
    """The type of each layer, by which models with several rotary embeddings choose one; empty where all are alike."""
    return list(getattr(hf, "layer_types", None) or [""] * n_layers)


def scale_of(hf: Any, name: str) -> float:
    """A factor among the settings; 1 where there is none."""
    return float(getattr(hf, name, None) or 1.0)


def size_of(hf: Any, name: str) -> int:
    """A whole number among the settings; 0 where there is none."""
    try:
        found = getattr(hf, name, None)
    except Exception:
        # Some configs have one for each layer, and refuse to tell one for all.
        return 0
    return found if type(found) is int else 0
