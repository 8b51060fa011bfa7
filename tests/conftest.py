"""What all tests share: surroundings, one thread, one hypothesis profile; and how many processes they are dealt to."""

from __future__ import annotations

import random
import sys

import pytest

from helpers.surroundings import n_processes, surround

surround()

import numpy as np  # noqa: E402 - it reads the environment as it is imported, and so does torch
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# Derandomised: a run of the tests is a check of the code, not a lottery. Raise `max_examples` to go hunting.
settings.register_profile(
    "zippkit", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("zippkit")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Whatever ran before a test in its process: the same random numbers, and nothing is compiled yet."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``pytest -n auto`` means here; by itself it knows neither affinity masks nor containers."""
    return n_processes()
