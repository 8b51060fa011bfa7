"""The check when a model is built: its logits, made layer by layer, are those of transformers' own forward."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.batch.masks import cache_mask
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.model.tower import tower_logits
from zippkit_towers.hf_causal_lm.tower import own_config, whole_model, windows_of

if TYPE_CHECKING:
    from zippkit_towers.hf_causal_lm.tower import HfCausalLm

LENGTH, WINDOW = 20, 7
"""Tokens that are run, and the window that layers with one are given for the check, so that it is passed."""
TOLERANCE = 1e-4
"""Largest difference, relative to the largest logit."""


@torch.no_grad()
def check_parity(tower: HfCausalLm) -> None:
    """Two rows of tokens, at once and part by part, against transformers' own forward on the same weights; where
    layers have a sliding window, again with a small one, so that the rows are longer than it.

    Raises:
        CheckpointError: they differ, or the model cannot be run layer by layer.
    """
    if any(p.is_meta for p in tower.parameters()):
        return
    training, windows = tower.training, tower.windows
    try:
        tower.eval()
        _compare(tower, {})
        if any(window is not None for window in windows):
            tower.windows = [window and WINDOW for window in windows]
            _compare(tower, {"sliding_window": WINDOW})
    except ZippkitError:
        raise
    except Exception as error:
        # Transformers' own modules run here, on settings that nobody has checked.
        raise CheckpointError(f"a {tower.config.model_type!r} model cannot be run layer by layer: {error}") from error
    finally:
        tower.windows = windows
        tower.train(training)


def _compare(tower: HfCausalLm, changes: dict[str, Any]) -> None:
    device = next(tower.parameters()).device
    n = min(LENGTH, tower.config.max_len or LENGTH)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(tower.config.vocab_size or 1, (2, n), generator=generator).to(device)
    expected = own_forward(tower, tokens, changes)
    for what, found in (("at once", _at_once(tower, tokens)), ("part by part", _cached(tower, tokens))):
        gap = float((found - expected).abs().max())
        # Written so that NaN is refused.
        if not gap <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise CheckpointError(
                f"a {tower.config.model_type!r} model, run layer by layer ({what}"
                f"{', past its window' if changes else ''}), differs by {gap:.2g} from transformers' own forward; "
                "it would run wrong, so it is not run"
            )


def own_forward(tower: HfCausalLm, tokens: Tensor, changes: dict[str, Any]) -> Tensor:
    """Logits (B, T, V) of transformers' own model, made of its config as it stands, but for ``changes``, and of the
    tower's weights."""
    hf = own_config(tower.config, tower.folder)
    for key, value in changes.items():
        setattr(hf, key, value)
    with torch.device("meta"):
        whole = whole_model(tower.config, hf)
    if windows_of(whole.config) != tower.windows:
        raise ValueError(f"its windows are {windows_of(whole.config)}, expected {tower.windows}")
    base = getattr(whole, tower.config.family.base)
    for name, module in getattr(tower, tower.config.family.base).named_children():
        setattr(base, name, module)
    embedding = getattr(base, tower.config.family.embedding)
    if whole.config.tie_word_embeddings:
        whole.lm_head.weight = embedding.weight
    else:
        whole.lm_head = tower.lm_head
    logits: Tensor = whole.eval()(tokens, use_cache=False).logits
    return logits


def _at_once(tower: HfCausalLm, tokens: Tensor) -> Tensor:
    return tower_logits(tower, TowerBatch.alone(tokens))


def _cached(tower: HfCausalLm, tokens: Tensor) -> Tensor:
    """A first half at once, four tokens one by one, and the rest at once."""
    whole, n = TowerBatch.alone(tokens), tokens.shape[1]
    cache, found = tower.new_cache(len(tokens), n), []
    for start, stop in pairwise(sorted({0, *range(n // 2, min(n // 2 + 5, n)), n})):
        part = whole.part(slice(start, stop))
        hidden, context = tower.start(part, cache_mask(part.positions, stop), cache)
        for index in range(tower.config.n_layers):
            hidden = tower.layer(index, hidden, context)
        found.append(tower.head(hidden))
    return torch.cat(found, dim=1)
