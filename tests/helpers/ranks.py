"""Several processes that do one thing together, as torchrun starts them, with a limit on their time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from helpers.tiny_runs import command

LIMIT = 120.0
"""Seconds after which ranks that wait for each other are given up."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environments(size: int) -> list[dict[str, str]]:
    """What torchrun would tell each rank."""
    port = str(free_port())
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size)}
    shared |= {"OMP_NUM_THREADS": "1"}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def start(size: int, arguments: Sequence[str | Path]) -> list[subprocess.Popen[str]]:
    """Start a command line once for each rank."""
    pipe = subprocess.PIPE
    return [subprocess.Popen(arguments, env=each, stdout=pipe, stderr=pipe, text=True) for each in environments(size)]


def wait(ranks: Sequence[subprocess.Popen[str]]) -> list[subprocess.CompletedProcess[str]]:
    """What each rank returned and printed; all of them are killed where one takes too long."""
    try:
        told = [rank.communicate(timeout=LIMIT) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [
        subprocess.CompletedProcess(rank.args, rank.returncode, *each) for rank, each in zip(ranks, told, strict=True)
    ]


def zippkit_on(size: int, *arguments: str | Path) -> list[subprocess.CompletedProcess[str]]:
    """The command line, on so many ranks."""
    return wait(start(size, command(*arguments)))


def on_ranks(size: int, function: str, *arguments: str | Path) -> None:
    """Call ``module.function`` of the helpers on each rank; its arguments are words. Fails where any rank fails."""
    module, _, name = function.rpartition(".")
    root = Path(__file__).parents[2]
    words = [f"sys.path.insert(0, {str(root / 'tests')!r})", f"from {module} import {name}", f"{name}(*sys.argv[1:])"]
    started = start(size, [sys.executable, "-c", "; ".join(["import sys", *words]), *arguments])
    for rank, told in enumerate(wait(started)):
        assert told.returncode == 0, f"rank {rank}: {told.stderr[-3000:]}"
