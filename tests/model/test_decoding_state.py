"""What generation keeps: memories in which each row's entries stand one behind the other."""

from __future__ import annotations

import torch

from zippkit.model.decoding_state import Growing
from zippkit.model.links.base import Memory


def entries(*rows: list[int]) -> Memory:
    """Entries of so many rows; each one's value is its order."""
    order = torch.tensor(rows)
    return Memory(order, (order[:, :, None].float(),))


def test_rows_that_end_at_other_times_leave_no_gaps() -> None:
    first = entries([0, 1], [0, 1], [0, 1])
    growing = Growing(first, 3)
    growing.append(first, [0, 1, 2])
    growing.append(entries([2, 3, 4]), [1])
    growing.append(entries([2], [5]), [0, 1])
    growing.append(entries([3], [2]), [0, 2])
    memory = growing.memory()
    assert memory.order.tolist() == [[0, 1, 2, 3, -1, -1], [0, 1, 2, 3, 4, 5], [0, 1, 2, -1, -1, -1]]
    there = memory.order >= 0
    assert torch.equal(memory.tensors[0][there][:, 0], memory.order[there].float())


def test_a_memory_is_as_long_as_its_longest_row() -> None:
    """Whatever its buffers hold in reserve."""
    growing = Growing(entries([0]), 1)
    for order in range(9):
        growing.append(entries([order]), [0])
        assert growing.memory().order.tolist() == [list(range(order + 1))]
