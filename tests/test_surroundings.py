"""The tests' own surroundings: the same in this process and its children, sized by what the machine lends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.surroundings import ENVIRONMENT, n_processes, surround

pytestmark = pytest.mark.slow


def test_a_process_of_a_test_runs_with_as_many_threads_as_the_test() -> None:
    code = "import torch; print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == torch.get_num_threads() == 1


def test_every_process_orders_sets_alike() -> None:
    """Or names of tests that are made of sets would differ, and pytest-xdist would run none."""
    code = "print({*'abcdefgh'})"
    orders = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(4)}
    assert len(orders) == 1


def test_what_a_user_or_a_git_hook_has_set_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_DIR", "FORCE_COLOR", "OMP_NUM_THREADS", "LC_ALL", "COLUMNS"):
        monkeypatch.setenv(name, "9")
    surround()
    assert not {"GIT_DIR", "FORCE_COLOR"} & set(os.environ)
    assert {name: os.environ[name] for name in ENVIRONMENT} == ENVIRONMENT


def test_there_are_as_many_processes_as_a_container_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**23}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    assert n_processes(tmp_path) == 8, "no control group"
    for quota, memory, expected in (
        ("max 100000", "max", 8),
        ("300000 100000", "max", 3),
        ("50000 100000", "max", 1),
        ("max 100000", str(4 * 2**30), 2),
        ("max 100000", str(2**20), 1),
    ):
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
        (tmp_path / "memory.max").write_text(f"{memory}\n")
        assert n_processes(tmp_path) == expected
