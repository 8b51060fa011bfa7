"""One hypothesis profile and one thread for all tests."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

# Derandomised: a run of the tests is a check of the code, not a lottery. Raise `max_examples` to go hunting.
settings.register_profile(
    "zippkit", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("zippkit")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
