"""The KV cache: what is written stays where it is while rows and slots are added, and rows are handed on."""

from __future__ import annotations

import torch
from torch import Tensor

from zippkit.model.kv_cache import BLOCK, KeyValues, capacity_for


def filled(n_rows: int, n_slots: int) -> KeyValues:
    """Two layers, the second with other heads than the first."""

    def numbers(*shape: int) -> Tensor:
        return torch.arange(float(torch.Size(shape).numel())).reshape(shape) + 1

    shapes = [(n_rows, 2, n_slots, 3), (n_rows, 1, n_slots, 5)]
    return KeyValues([numbers(*shape) for shape in shapes], [-numbers(*shape) for shape in shapes])


def test_capacities_are_few() -> None:
    assert {capacity_for(n) for n in range(1000)} == {BLOCK, 2 * BLOCK, 4 * BLOCK, 8 * BLOCK, 16 * BLOCK}
    assert all(n <= capacity_for(n) <= max(BLOCK, 2 * n) for n in range(1000))


def test_what_is_written_stays_while_the_cache_grows() -> None:
    cache, before = filled(2, 3), filled(2, 3)
    cache.grow(4, 8)
    for found, expected in zip(cache.keys + cache.values, before.keys + before.values, strict=True):
        assert found.shape == (4, found.shape[1], 8, found.shape[3])
        assert torch.equal(found[:2, :, :3], expected)
        assert not found[2:].any() and not found[:, :, 3:].any(), "what is new is finite"


def test_rows_are_put_into_slots_of_another_cache() -> None:
    cache, other = filled(4, 6), filled(2, 4)
    kept = cache.picked(torch.arange(4))
    # Its second layer was told wrongly, as a layer with heads of its own is, and nothing is written yet.
    cache.values[1] = torch.zeros(4, 7, 6, 5)
    cache.put([3, 0], other, 2)
    for mine, before, theirs in zip(cache.keys, kept.keys, other.keys, strict=True):
        assert torch.equal(mine[[3, 0], :, :2], theirs[:, :, :2])
        assert torch.equal(mine[:, :, 2:], before[:, :, 2:]) and torch.equal(mine[1:3], before[1:3])
    assert torch.equal(cache.values[1][[3, 0], :, :2], other.values[1][:, :, :2])


def test_new_tokens_are_written_into_their_slots() -> None:
    cache = filled(2, 6)
    before = cache.picked(torch.tensor([0, 1]))
    new = torch.full((2, 2, 1, 3), 0.5)
    keys, values = cache.extend(0, new, new, torch.tensor([[4], [1]]), 5)
    assert keys.shape == values.shape == (2, 2, 5, 3)
    assert (keys[0, :, 4] == 0.5).all() and (values[1, :, 1] == 0.5).all()
    changed = torch.zeros(2, 1, 6, 1, dtype=torch.bool)
    changed[0, 0, 4] = changed[1, 0, 1] = True
    assert torch.equal(torch.where(changed, 0, cache.keys[0]), torch.where(changed, 0, before.keys[0]))
