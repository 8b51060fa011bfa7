"""A rank is killed at some moment; torchrun starts all of them again, and the run ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers.ranks import LIMIT, free_port
from helpers.tiny_runs import saved, write_recipe
from zippkit.training.metrics import read_metrics

pytestmark = pytest.mark.slow

N_RANKS = 2


def start(recipe: Path, run: Path) -> subprocess.Popen[str]:
    """Train under torchrun, which starts all ranks again where one dies."""
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", run.name]
    often = ["--nproc-per-node", str(N_RANKS), "--max-restarts", "2", "--monitor-interval", "0.1"]
    train = ["-m", "zippkit", "train", str(recipe), "--out", str(run)]
    around = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    words = [sys.executable, "-m", "torch.distributed.run", *where, *often, *train]
    return subprocess.Popen(words, env=around, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(file: Path, process: subprocess.Popen[str]) -> float:
    """Wait until a file is there or the process has ended; returns when that was."""
    while not file.exists() and process.poll() is None:
        time.sleep(0.005)
    return time.monotonic()


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the ranks, in their order."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {int(dict(_environment(int(pid))).get("RANK", -1)): int(pid) for pid in found}
    return [ranks[rank] for rank in sorted(ranks) if rank >= 0]


def _environment(pid: int) -> list[tuple[str, str]]:
    lines = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return [(name, value) for name, _, value in (line.partition("=") for line in lines)]


def assert_same_run(run: Path, clean: Path) -> None:
    """The same weights, state of the optimizer and lines of metrics."""
    assert list((run / "model").rglob("*.safetensors"))
    for file in (clean / "model").rglob("*.safetensors"):
        assert (run / "model" / file.relative_to(clean / "model")).read_bytes() == file.read_bytes(), file.name
    expected, found = saved(clean), saved(run)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    told = [[{**line, "tokens_per_second": 0} for line in read_metrics(each)] for each in (run, clean)]
    assert told[0] == told[1]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds ranks in /proc")
@pytest.mark.parametrize("n_kills", [1, pytest.param(20, marks=[pytest.mark.ranks, pytest.mark.timeout(120 * 21)])])
def test_a_rank_is_killed_at_random_moments(tmp_path: Path, n_kills: int, capsys: pytest.CaptureFixture[str]) -> None:
    phase = {"steps": 30, "save_every": 2, "log_every": 3, "save_async": True}
    recipe = write_recipe(tmp_path, phase)
    clean, numbers = start(recipe, tmp_path / "clean"), random.Random(n_kills)
    began = wait_for(tmp_path / "clean" / "recipe.yaml", clean)
    told = clean.communicate(timeout=LIMIT)[1]
    assert clean.returncode == 0, told[-3000:]
    lasts = time.monotonic() - began
    for i in range(n_kills):
        run = tmp_path / f"killed-{i}"
        process = start(recipe, run)
        wait_for(run / "recipe.yaml", process)
        moment, rank = numbers.uniform(0, 0.9 * lasts), numbers.randrange(N_RANKS)
        time.sleep(moment)
        saves = sorted(folder.name for folder in run.glob("checkpoints/train/*"))
        os.kill(ranks_of(process)[rank], signal.SIGKILL)
        told = process.communicate(timeout=LIMIT)[1]
        assert process.returncode == 0, told[-3000:]
        assert_same_run(run, tmp_path / "clean")
        with capsys.disabled():
            told = f"rank {rank} after {moment:.2f} of {lasts:.2f} s, {saves[-1] if saves else 'nothing'} saved"
            print(f"\nkill {i + 1}: {told}; the same end", end="")
