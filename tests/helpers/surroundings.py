"""The surroundings that every test runs in, whatever the machine, its terminal and its user's settings."""

from __future__ import annotations

import os
import time
from pathlib import Path

ENVIRONMENT = {
    # One thread, here and in every process that a test starts: another number of threads adds floats in another order,
    # so runs that a test compares bit for bit would differ with the machine's number of cores.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Names of tests are made of sets too, and pytest-xdist takes its processes only if all give the same names.
    "PYTHONHASHSEED": "0",
    # Read by huggingface_hub when it is imported: no test asks a hub for anything.
    "HF_HUB_OFFLINE": "1",
    # What is printed and drawn depends on neither the terminal nor the user.
    "COLUMNS": "80",
    "LINES": "24",
    "TERM": "dumb",
    "NO_COLOR": "1",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "MPLBACKEND": "agg",
    # A test that commits does so without the user's hooks, signatures and templates.
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}
UNWANTED = ("FORCE_COLOR", "CLICOLOR_FORCE", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "PYTHONWARNINGS")
"""Set by terminals, by users, and by git for its hooks, which may well run the tests."""

PROCESS_MEMORY = 1.5 * 2**30
"""Bytes that one process of the tests may come to use, with some to spare."""

CONTROL_GROUP = Path("/sys/fs/cgroup")


def surround() -> None:
    """Set the environment of this process and of its children; to be called before torch and numba are imported."""
    os.environ.update(ENVIRONMENT)
    for name in UNWANTED:
        os.environ.pop(name, None)
    if hasattr(time, "tzset"):
        time.tzset()


def n_processes(control_group: Path = CONTROL_GROUP) -> int:
    """How many processes the tests are dealt to: one for each core that is ours, as far as memory allows."""
    return max(1, min(_cores(control_group), int(_memory(control_group) // PROCESS_MEMORY)))


def _cores(control_group: Path) -> int:
    """The cores of the affinity mask, or as many as the control group's quota pays for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _limit(control_group / "cpu.max").partition(" ")
    return min(cores, max(1, int(quota) // int(period))) if quota.isdigit() else cores


def _memory(control_group: Path) -> int:
    """Bytes of this machine, or of the control group that a container runs in."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _limit(control_group / "memory.max")
    return min(machine, int(limit)) if limit.isdigit() else machine


def _limit(file: Path) -> str:
    return file.read_text().strip() if file.is_file() else ""
