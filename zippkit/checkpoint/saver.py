"""Writes a run's checkpoints one after another; in the background if asked, so that a step waits only for a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from zippkit.checkpoint.checkpoint import Checkpoint
from zippkit.checkpoint.together import ALONE, Together
from zippkit.checkpoint.writing import write_checkpoint
from zippkit.model.pieces import Held, Piece, pieces
from zippkit.model.weights import identity


class Saver:
    """Writes checkpoints, alone or together with other ranks, each of which has one."""

    def __init__(self, root: Path, together: Together = ALONE, *, in_background: bool = False) -> None:
        """Prepare to write.

        Args:
            root: a folder that is moved as a whole; sources inside are named relatively.
            together: the ranks that write.
            in_background: go on while a copy on the host is written.
        """
        self.together = together
        self._root = root
        self._background = ThreadPoolExecutor(1, "checkpoint") if in_background else None
        self._under_way: Future[None] | None = None

    def save(self, folder: Path, checkpoint: Checkpoint, then: Callable[[], None] = lambda: None) -> None:
        """Write a checkpoint, once the one before is written; ``then`` is done by the first rank when it is there.

        Raises:
            ZippkitError: as `write_checkpoint`; in the background, of the checkpoint before.
        """
        self.wait()
        if self._background is None:
            self._write(folder, checkpoint, then)
            return
        copy = on_host(checkpoint, self.together)
        self._under_way = self._background.submit(self._write, folder, copy, then)

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            ZippkitError: what the writing failed with, once.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Wait for what is under way at the end of the block, whichever it is; an error in the block goes first."""
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self.wait()
            raise
        self.wait()

    def _write(self, folder: Path, checkpoint: Checkpoint, then: Callable[[], None]) -> None:
        write_checkpoint(folder, checkpoint, root=self._root, together=self.together)
        self.together.first(then)


def on_host(checkpoint: Checkpoint, together: Together = ALONE) -> Checkpoint:
    """A copy of what this rank holds, in memory of its own; what was one tensor under two names still is."""
    copies: dict[object, Tensor] = {}

    def copied(tensor: Tensor) -> Tensor:
        if not tensor.numel():
            return tensor.detach().cpu().clone()
        key = identity(tensor)
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        return copies[key]

    def all_of(tensors: Mapping[str, Held]) -> dict[str, Held]:
        if together.size == 1:
            return {name: copied(tensor) for name, tensor in tensors.items() if not isinstance(tensor, Piece)}
        mine = pieces(tensors, together.rank)
        return {name: replace(each, rows=copied(each.rows)) for name, each in mine.items()}

    return replace(checkpoint, tensors=all_of(checkpoint.tensors), optimizer=all_of(checkpoint.optimizer))
