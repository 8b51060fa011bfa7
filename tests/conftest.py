"""What all tests share: surroundings, one thread, one hypothesis profile; and how many processes they are dealt to."""

from __future__ import annotations

import pytest

from helpers.surroundings import n_processes, surround

surround()

import torch  # noqa: E402 - it reads the environment as it is imported
from hypothesis import HealthCheck, settings  # noqa: E402

# Derandomised: a run of the tests is a check of the code, not a lottery. Raise `max_examples` to go hunting.
settings.register_profile(
    "zippkit", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("zippkit")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``pytest -n auto`` means here; by itself it knows neither affinity masks nor containers."""
    return n_processes()
