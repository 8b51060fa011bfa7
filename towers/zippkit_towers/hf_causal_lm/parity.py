"""Compares a tower's logits, computed layer by layer, with transformers' own forward whenever one is built."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.batch.masks import cache_mask
from zippkit.errors import CheckpointError, ZippkitError
from zippkit.model.run_tower import tower_logits
from zippkit_towers.hf_causal_lm.modules import DecoderModules
from zippkit_towers.hf_causal_lm.settings import windows_of
from zippkit_towers.hf_causal_lm.transformers_model import own_config, whole_model

LENGTH, WINDOW = 20, 7
"""Length of the rows, and the sliding window of the second comparison, which is shorter than they are."""
TOLERANCE, IN_BF16 = 1e-4, 5e-2
"""Largest difference, relative to the largest logit; and where both are run in bfloat16."""


@torch.no_grad()
def check_parity(tower: DecoderModules) -> float:
    """Compare two rows of tokens with transformers' own forward on the same weights.

    They are run at once, in training mode, at the last position ids that there are, and with a KV cache, the rows at
    different lengths; where layers have a sliding window, again with a small one, so that the rows are longer than it.

    Returns:
        The largest difference, relative to the largest logit.

    Raises:
        CheckpointError: they differ, or the model cannot be run layer by layer.
    """
    if any(p.is_meta for p in tower.parameters()):
        return 0.0
    training, windows = tower.training, tower.windows
    try:
        tower.eval()
        gap = _compare(tower, {})
        if any(window is not None for window in windows):
            tower.windows = [window and WINDOW for window in windows]
            gap = max(gap, _compare(tower, {"sliding_window": WINDOW}))
    except ZippkitError:
        raise
    except Exception as error:
        # Transformers' own modules run here, on settings that nobody has checked.
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(f"a {tower.config.model_type!r} model cannot be run layer by layer ({why})") from error
    finally:
        tower.windows = windows
        tower.train(training)
    return gap


def _compare(tower: DecoderModules, changes: dict[str, Any]) -> float:
    device = next(tower.parameters()).device
    longest = tower.config.max_len or LENGTH
    n = min(LENGTH, longest)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(tower.config.vocab_size or 1, (2, n), generator=generator).to(device)
    near, far = TowerBatch.alone(tokens), _at_the_end(tokens, longest)
    own = own_model(tower, changes)
    expected = own(tokens, use_cache=False).logits
    shorter = own(tokens[:, : (n + 1) // 2], use_cache=False).logits
    if float((expected[:, : shorter.shape[1]] - shorter).abs().max()) > _tolerance(tower) * float(expected.abs().max()):
        raise CheckpointError(
            f"a {tower.config.model_type!r} model looks ahead in its own forward, so it is no decoder"
        )
    tries = [("at once", expected, tower_logits(tower, near)), ("part by part", expected, _cached(tower, near))]
    if not changes:
        tower.train()
        tries.append(("in training mode", expected, tower_logits(tower, near)))
        tower.eval()
        if "position_ids" in inspect.signature(own.forward).parameters:
            last = own(tokens, position_ids=far.position_ids, use_cache=False).logits
            tries.append(("at its last positions", last, tower_logits(tower, far)))
    return max(_gap(tower, f"{what}{', past its window' if changes else ''}", *pair) for what, *pair in tries)


def _tolerance(tower: DecoderModules) -> float:
    return IN_BF16 if tower.dtype == torch.bfloat16 else TOLERANCE


def _at_the_end(tokens: Tensor, longest: int) -> TowerBatch:
    batch = TowerBatch.alone(tokens)
    return replace(batch, position_ids=batch.position_ids + longest - tokens.shape[1])


def _gap(tower: DecoderModules, what: str, expected: Tensor, found: Tensor) -> float:
    gap = float((found - expected).abs().max())
    largest = max(1.0, float(expected.abs().max()))
    # Written so that NaN is refused.
    if not gap <= _tolerance(tower) * largest:
        raise CheckpointError(
            f"a {tower.config.model_type!r} model, run layer by layer ({what}), differs by {gap:.2g} from "
            "transformers' own forward; it would run wrong, so it is not run"
        )
    return gap / largest


def own_model(tower: DecoderModules, changes: dict[str, Any]) -> Any:
    """Transformers' own model, of its config as it stands, but for ``changes``, and of the tower's weights."""
    hf = own_config(tower.config, tower.folder)
    for key, value in changes.items():
        setattr(hf, key, value)
    with torch.device("meta"):
        whole = whole_model(tower.config, hf)
    windows = windows_of(whole.config, tower.config.n_layers)
    if windows != tower.windows:
        raise ValueError(f"its windows are {windows}, expected {tower.windows}")
    _lend(tower, whole, tower.parts.base)
    if tower.tied:
        whole.get_submodule(tower.parts.head).weight = tower.part("embedding").weight
    return whole.eval()


def _lend(own: nn.Module, whole: nn.Module, base: str) -> None:
    """Put the tower's modules into a whole model, but for its base, whose own forward is the reference."""
    inside, _, further = base.partition(".")
    for name, tensor in (*own.named_parameters(recurse=False), *own.named_buffers(recurse=False)):
        setattr(whole, name, tensor)
    for name, module in own.named_children():
        if name == inside:
            _lend(module, getattr(whole, name), further)
        else:
            setattr(whole, name, module)


def _cached(tower: DecoderModules, whole: TowerBatch) -> Tensor:
    """Logits (B, T, V) with a KV cache: prefill of a first half, then token by token, each row one behind the last."""
    n_rows, n = whole.tokens.shape
    rows = torch.arange(n_rows, device=whole.tokens.device)[:, None]
    cache, found = tower.new_cache(n_rows, n), None
    first = torch.arange(n // 2, device=rows.device).expand(n_rows, -1)
    steps = [(step - rows).clamp(min=0, max=n - 1) for step in range(n // 2, n + n_rows - 1)]
    for at in (first, *steps) if n > 1 else steps:
        part = whole.mapped(lambda column, at=at: column.gather(1, at))  # type: ignore[misc]
        hidden, context = tower.start(part, cache_mask(part.positions, int(at.max()) + 1), cache)
        for index in range(tower.config.n_layers):
            hidden = tower.layer(index, hidden, context)
        logits = tower.head(hidden)
        found = logits.new_zeros(n_rows, n, logits.shape[-1]) if found is None else found
        found[rows, at] = logits
    return cast("Tensor", found)
