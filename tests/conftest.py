"""One hypothesis profile, one thread and no model hub for all tests."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

# Read by huggingface_hub when it is imported: no test asks a hub for anything.
os.environ["HF_HUB_OFFLINE"] = "1"

# Derandomised: a run of the tests is a check of the code, not a lottery. Raise `max_examples` to go hunting.
settings.register_profile(
    "zippkit", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("zippkit")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
