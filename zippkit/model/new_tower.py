"""A new tower, its parameters in the dtype that is asked, with its weights loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from zippkit.errors import ZippkitError
from zippkit.model.fused import quicken
from zippkit.model.tower import Tower
from zippkit.model.weights import filled_in_place
from zippkit.spec.kinds import TowerConfig


def new_tower(cls: type[Tower], config: TowerConfig, dtype: torch.dtype, weights: Path | None = None) -> Tower:
    """Build a tower, its parameters in ``dtype``, with the weights of a file or folder where one is given.

    Raises:
        CheckpointError: weights that do not fit.
        ZippkitError: its ``load_weights`` replaces what it should fill, or it is made in float32 whatever is asked.
    """
    with default_dtype(dtype):
        meta = cls.made_by_weights and weights is not None
        with torch.device("meta") if meta else nullcontext():
            tower = cls(config)
        others = {p.dtype for p in tower.parameters() if p.is_floating_point()} - {dtype}
        if dtype != torch.float32 and others:
            raise ZippkitError(
                f"a {getattr(config, 'model_type', cls.__name__)!r} tower is run in {_words(others)} alone, not in "
                f"{_words([dtype])}; leave `dtype` out"
            )
        if weights is not None:
            with nullcontext() if meta else filled_in_place(tower, str(weights)):
                tower.load_weights(weights)
        quicken(tower)
        return tower


def _words(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set the dtype of new parameters, so that none is ever held in a wider one on the way."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
