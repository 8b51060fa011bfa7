"""Proof that frozen means frozen: hashes of every frozen tensor, compared whenever it matters (certificate C3)."""

from __future__ import annotations

from collections.abc import Mapping

from zippkit.errors import ZippkitError
from zippkit.model import ZippedModel
from zippkit.weights import fingerprint


def frozen_hashes(model: ZippedModel) -> dict[str, str]:
    """SHA-256 of each frozen parameter, and of each buffer of a tower that is frozen as a whole."""
    return fingerprint(model.frozen_tensors().items())


def moved(before: Mapping[str, str], model: ZippedModel) -> list[str]:
    """Names of the frozen tensors that are not what they were."""
    after = frozen_hashes(model)
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def check_frozen(before: Mapping[str, str], model: ZippedModel) -> None:
    """Compare with hashes taken earlier.

    Raises:
        ZippkitError: names every frozen tensor that moved.
    """
    names = moved(before, model)
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise ZippkitError(f"frozen tensors have changed, so this run is stopped and not saved: {shown}")
