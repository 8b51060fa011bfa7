"""Proof that frozen means frozen: hashes of every frozen tensor, compared whenever it matters (certificate C3)."""

from __future__ import annotations

from collections.abc import Mapping

from zippkit.errors import ZippkitError
from zippkit.model.weights import fingerprint
from zippkit.model.zipped_model import ZippedModel


def frozen_hashes(model: ZippedModel) -> dict[str, str]:
    """SHA-256 of each frozen parameter, and of each buffer of a tower that is frozen as a whole."""
    return fingerprint(model.frozen_tensors().items())


def check_frozen(before: Mapping[str, str], model: ZippedModel) -> None:
    """Compare with hashes taken earlier.

    Raises:
        ZippkitError: names every tensor that moved, and those that are not frozen any more or were not then.
    """
    after = frozen_hashes(model)
    wrong = [f"{name} has moved" for name in before if name in after and after[name] != before[name]]
    wrong += [f"{name} is not frozen any more" for name in before if name not in after]
    wrong += [f"{name} was not frozen at first" for name in after if name not in before]
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise ZippkitError(f"frozen weights must not change: {shown}")
