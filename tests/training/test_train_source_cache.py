"""A run with kept source states: what it tells, what it writes, and that it goes on to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from helpers.interrupts import assert_same_run, interrupt, on_step
from helpers.tiny_encoders import MODELS
from helpers.tiny_runs import WORDS, saved
from zippkit.checkpoint.frozen_hashes import frozen_hashes
from zippkit.composition import compile, load
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.table import Example
from zippkit.data.text import train_words
from zippkit.errors import SpecError, ZippkitError
from zippkit.loading import load_recipe
from zippkit.spec.recipe import Recipe
from zippkit.spec.source_cache import SourceCaching
from zippkit.training.metrics import read_metrics
from zippkit.training.trainer import InterruptedRunError, train

pytestmark = pytest.mark.slow

RATE = 800
TEXT = {
    "kind": "decoder",
    "config": {"vocab_size": 7, "dim": 16, "n_layers": 2, "n_heads": 2, "ffn_dim": 32},
    "frame": {"begin": 1, "end": 2},
    "freeze": True,
}
SPEECH = {"kind": "hf_encoder", "freeze": True, "config": {"model": MODELS["wav2vec2"], "sample_rate": RATE}}
LINK = {"kind": "gated_cross_attention", "from": "speech", "into": "text", "every": 1, "config": {"n_heads": 2}}


def write_data(folder: Path) -> None:
    numbers = np.random.default_rng(0)
    waves = [numbers.uniform(-1, 1, numbers.integers(60, 140)).astype(np.float32) for _ in range(24)]
    examples = [
        Example(f"{i:03d}", "nobody", 0.0, {"text": WORDS[i % len(WORDS)], "speech": wave})
        for i, wave in enumerate(waves)
    ]
    write_dataset(
        folder, {"train": examples, "test": examples[:4]}, {"text": train_words(WORDS)}, waveforms={"speech": RATE}
    )


def recipe(
    folder: Path,
    cache: Any,
    towers: dict[str, Any] | None = None,
    validation: dict[str, Any] | None = None,
    **phase: Any,
) -> Recipe:
    """Eight steps, two epochs and more; ``cache`` is what `cache_sources` says."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        write_data(folder / "data")
    steps = {"steps": 8, "batch_size": 8, "log_every": 2, "save_every": 4, "learning_rate": 1e-2}
    content = {
        "name": "hears",
        "spec": {"name": "hears", "towers": {"text": TEXT, "speech": SPEECH} | (towers or {}), "links": [LINK]},
        "data": "data",
        "train": steps | phase | ({} if cache is None else {"cache_sources": cache}),
    }
    content |= {} if validation is None else {"validation": validation}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return load_recipe(folder / "recipe.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps that keeps its source's states."""
    folder = tmp_path_factory.mktemp("keeps")
    train(recipe(folder, cache=True), folder / "run")
    return folder


def test_the_run_is_that_without_a_cache(finished: Path, tmp_path: Path) -> None:
    train(recipe(tmp_path, cache=None), tmp_path / "run")
    with_cache, without = saved(finished / "run"), saved(tmp_path / "run")
    assert with_cache.keys() == without.keys()
    for name, tensor in without.items():
        assert torch.allclose(with_cache[name], tensor, rtol=1e-3, atol=1e-4), name
    assert len(list((finished / "run" / "source_states").rglob("*.safetensors"))) == 24
    assert not (tmp_path / "run" / "source_states").exists()
    ends = load(finished / "run")
    begin = compile(ends.spec)
    assert frozen_hashes(begin.spec, begin.model) == frozen_hashes(ends.spec, ends.model), "C3"


@pytest.mark.parametrize("gone", [False, True], ids=["kept", "deleted"])
def test_a_stopped_run_goes_on_to_the_bit(
    gone: bool, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where only some entries of a batch are there when it is computed again, or none any more."""
    wanted = recipe(tmp_path, cache=True)
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError, match="after step 3 of train"):
        on_step(patch, 2, interrupt)
        train(wanted, tmp_path / "run")
    if gone:
        for i, file in enumerate(sorted((tmp_path / "run" / "source_states").rglob("*.safetensors"))):
            if i % 3:
                file.unlink()
    train(wanted, tmp_path / "run")
    assert_same_run(tmp_path / "run", finished / "run")


def test_a_killed_run_goes_on_to_the_bit(finished: Path, tmp_path: Path) -> None:
    recipe(tmp_path, cache=True)
    command = [sys.executable, "-m", "zippkit", "train", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    states = tmp_path / "run" / "source_states"
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    while len(list(states.rglob("*.safetensors"))) < 13 and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    train(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    assert_same_run(tmp_path / "run", finished / "run")


def test_two_runs_share_a_folder_that_the_recipe_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: Path
) -> None:
    shared = tmp_path / "shared"
    train(recipe(tmp_path, cache=str(shared)), tmp_path / "one")
    first = capsys.readouterr().err
    files = {file: file.stat().st_mtime_ns for file in shared.rglob("*.safetensors")}
    train(recipe(tmp_path, cache={"folder": str(shared)}), tmp_path / "two")
    assert files == {file: file.stat().st_mtime_ns for file in shared.rglob("*.safetensors")}, "nothing is written anew"
    assert f"source cache: {shared}: speech after layers 2, 3: about" in first
    assert "0 bytes are to be written" in capsys.readouterr().err
    assert "source cache: text is computed at every step: a loss is asked of it" in first
    assert_same_run(tmp_path / "two", finished / "run")


def test_another_model_in_the_same_folder_takes_nothing_of_it(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    train(recipe(tmp_path, cache=str(shared)), tmp_path / "one")
    n = len(list(shared.rglob("*.safetensors")))
    model = MODELS["wav2vec2"] | {"num_attention_heads": 4}
    other = {"speech": SPEECH | {"config": {"model": model, "sample_rate": RATE}}}
    train(recipe(tmp_path, cache=str(shared), towers=other), tmp_path / "other")
    train(recipe(tmp_path, cache=None, towers=other), tmp_path / "without")
    assert len(list(shared.rglob("*.safetensors"))) == 2 * n
    found, expected = saved(tmp_path / "other"), saved(tmp_path / "without")
    assert all(torch.allclose(found[name], each, rtol=1e-3, atol=1e-4) for name, each in expected.items())


def test_where_nothing_can_be_kept_the_run_says_so_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe(tmp_path, cache=True, towers={"speech": SPEECH | {"freeze": False}}, steps=1), tmp_path / "run")
    told = capsys.readouterr().err
    assert "source cache: speech is computed at every step: trained" in told
    assert "no tower's states can be kept" in told and not (tmp_path / "run" / "source_states").exists()


def test_too_little_room_is_told_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZippkitError, match=r"cache_sources\.limit: .* take about 45.5 kB, and 1.0 kB are allowed"):
        train(recipe(tmp_path, cache={"limit": 1e-6}), tmp_path / "run")
    monkeypatch.setattr("zippkit.training.state_store.StateStore.room", lambda self: 10)
    with pytest.raises(ZippkitError, match="where 10 bytes are free"):
        train(recipe(tmp_path, cache={"dtype": "bf16"}), tmp_path / "other")
    assert not list(tmp_path.rglob("step-*"))


def test_states_in_bf16_take_half_and_say_how_far_they_are_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe(tmp_path, cache={"dtype": "bf16"}, steps=4), tmp_path / "run")
    assert "states kept in bfloat16 are off by up to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        (False, None),
        (True, SourceCaching()),
        ("x/y", SourceCaching(folder=Path("x/y"))),
        ({"folder": "x", "dtype": "bf16", "limit": 5.0}, SourceCaching(folder=Path("x"), dtype="bf16", limit=5.0)),
    ],
)
def test_what_a_recipe_may_say(given: Any, expected: Any, tmp_path: Path) -> None:
    assert recipe(tmp_path, given).train.cache_sources == expected


def test_what_a_recipe_may_not_say(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as error:
        recipe(tmp_path, {"dtype": "int8", "limit": -1, "foldr": "x"})
    told = str(error.value)
    assert all(f"train.cache_sources.{key}" in told for key in ("dtype", "limit", "foldr")), told


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation_while_training_reads_it_too(precision: str, tmp_path: Path) -> None:
    """In float32, whatever a step is computed in."""
    validation = {"split": "test", "evaluate_every": 2, "generate": False}
    for name, cache in (("with", True), ("without", None)):
        wanted = recipe(tmp_path, cache, {}, validation, steps=4, precision=precision)
        train(wanted, tmp_path / name)
    told = [
        [line["validation"] for line in read_metrics(tmp_path / name) if "validation" in line]
        for name in ("with", "without")
    ]
    assert len(told[0]) == 2 and all(
        one[key] == pytest.approx(other[key], rel=1e-2) for one, other in zip(*told, strict=True) for key in other
    )
    what = [json.loads(file.read_text()) for file in (tmp_path / "with" / "source_states").glob("*/about.json")]
    assert {each["precision"] for each in what} == {precision, "fp32"}


def test_accumulated_parts_of_a_step_read_it_too(finished: Path, tmp_path: Path) -> None:
    train(recipe(tmp_path, cache=True, accumulate=3), tmp_path / "run")
    found, expected = saved(tmp_path / "run"), saved(finished / "run")
    assert all(torch.allclose(found[name], each, rtol=1e-2, atol=1e-3) for name, each in expected.items())
    files = [sorted((run / "run" / "source_states").rglob("*.safetensors")) for run in (tmp_path, finished)]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_it_may_be_switched_on_when_a_run_goes_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError, match="after step 3 of train"):
        on_step(patch, 2, interrupt)
        train(recipe(tmp_path, cache=None), tmp_path / "run")
    train(recipe(tmp_path, cache=True), tmp_path / "run")
    found, expected = saved(tmp_path / "run"), saved(finished / "run")
    assert all(torch.allclose(found[name], each, rtol=1e-3, atol=1e-4) for name, each in expected.items())
    assert len(list((tmp_path / "run" / "source_states").rglob("*.safetensors"))) == 24
