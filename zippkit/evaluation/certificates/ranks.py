"""C6: several ranks, whatever modalities each has rows of, learn what one process learns, and none waits for ever."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from zippkit.composition import Composition
from zippkit.evaluation.certificates.probe import randomize_zero_inits
from zippkit.evaluation.certificates.report import RefutedError

CLAIM = "ranks that lack modalities or rows learn what one process learns, and none waits for ever"
LIMIT = 300.0
"""Seconds after which ranks are taken to wait for each other; they begin by loading the composition."""


def ranks_equal_one(zipped: Composition, size: int, *, agreeing: bool = True, limit: float = LIMIT) -> str:
    """Certificate C6: steps of the real trainer on so many ranks, each a process, beside those of one process.

    In float64, on a copy in which no parameter is zero. Rows are dealt to ranks as they come, by modality, and so that
    the last rank has none; trained weights are held in parts, and then all weights.

    Args:
        zipped: the composition.
        size: number of ranks.
        agreeing: False leaves out the agreement on what each step runs, to see that it is needed.
        limit: seconds until ranks are given up.

    Raises:
        RefutedError: names losses, moments or weights that differ; or a rank failed, or waits for another one.
    """
    model = copy.deepcopy(zipped.model).cpu()
    randomize_zero_inits(model)
    with tempfile.TemporaryDirectory(prefix="zippkit-ranks-") as folder:
        replace(zipped, model=model).save(Path(folder) / "model")
        return _proved(Path(folder), size, agreeing=agreeing, limit=limit)


def _proved(folder: Path, size: int, *, agreeing: bool, limit: float) -> str:
    words = [sys.executable, "-m", "zippkit.evaluation.certificates.ranked_steps", str(folder), str(int(agreeing))]
    port = str(_free_port())
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(size):
            told = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (folder / f"rank{rank}").open("wb") as out:
                ranks.append(subprocess.Popen(words, env=told, stdout=subprocess.DEVNULL, stderr=out))
        _wait(ranks, folder, time.monotonic() + limit, limit)
    finally:
        for each in ranks:
            each.kill()
            each.wait()
    found = json.loads((folder / "found.json").read_text())
    if found["wrong"]:
        raise RefutedError(f"{size} ranks and one process differ: {found['wrong']}")
    return f"{size} ranks, {found['said']}"


def _wait(ranks: Sequence[subprocess.Popen[bytes]], folder: Path, until: float, limit: float) -> None:
    """Until all have ended well; one that fails, or the end of the time, ends it at once."""
    while any(rank.poll() is None for rank in ranks):
        failed = [i for i, rank in enumerate(ranks) if rank.poll() not in (None, 0)]
        if failed:
            break
        if time.monotonic() > until:
            raise RefutedError(
                f"the ranks had not ended after {limit:.0f} seconds: one waits for what another never does"
            )
        time.sleep(0.1)
    for i, rank in enumerate(ranks):
        if rank.poll() not in (None, 0):
            lines = (folder / f"rank{i}").read_text(errors="replace").strip().splitlines()
            raise RefutedError(f"rank {i} of {len(ranks)} failed: {lines[-1] if lines else rank.returncode}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
