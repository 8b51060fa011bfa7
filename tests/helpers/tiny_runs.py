"""A tiny dataset that a tiny model can learn, a recipe on it, and one finished run that several tests look at."""

from __future__ import annotations

import atexit
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import yaml

from zippkit.cli import main
from zippkit.composition import load
from zippkit.data.dataset import Dataset, Example
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.text import train_words
from zippkit.loading import load_recipe
from zippkit.model.weights import read_tensors
from zippkit.spec.recipe import Recipe
from zippkit.training.run_folder import RunFolder
from zippkit.training.trainer import train

DEMO = Path(__file__).parents[2] / "recipes" / "demo"
SOUND = min((DEMO / "audio").glob("*.wav"))
WORDS = ("four", "one", "three", "two")
"""In the order of their ids, which start at 3."""


def examples(n: int, seed: int, longest: int = 4) -> list[Example]:
    """Strings of words; each word sounds as two units of its own, the second of which may be drawn out."""
    numbers = np.random.default_rng(seed)
    found = []
    for i in range(n):
        said = numbers.integers(0, len(WORDS), size=numbers.integers(1, longest + 1))
        units = [unit for word in said for unit in [2 * word] + [2 * word + 1] * numbers.integers(1, 3)]
        items = {"text": " ".join(WORDS[word] for word in said), "speech": np.array(units)}
        found.append(Example(f"{seed}-{i:03d}", "nobody", 0.0, items))
    return found


def write_data(folder: Path, n: int = 24, words: Sequence[str] = WORDS, **more: Any) -> Dataset:
    """``n`` examples to train on and six to test on; text as words, speech as plain ids 0 to 7."""
    splits = {"train": examples(n, 0, **more), "test": examples(6, 1)}
    return write_dataset(folder, splits, {"text": train_words(words)})


def spec(**more: Any) -> dict[str, Any]:
    """Frozen text that listens to trained speech."""
    speech = {"vocab_size": 10, "dim": 16, "n_layers": 2, "n_heads": 2, "ffn_dim": 32}
    text = {"vocab_size": 7, "dim": 16, "n_layers": 1, "n_heads": 2, "ffn_dim": 32}
    return {
        "name": "tiny",
        "towers": {
            "text": {"kind": "decoder", "config": text, "frame": {"begin": 1, "end": 2}, "freeze": True},
            "speech": {"kind": "decoder", "config": speech, "frame": {"begin": 8, "end": 9}},
        },
        "links": [
            {"kind": "gated_cross_attention", "from": "speech", "into": "text", "every": 1, "config": {"n_heads": 2}}
        ],
        **more,
    }


Train = dict[str, Any] | list[dict[str, Any]]
"""Keys of the main phase, or of each of several stages."""


def write_recipe(folder: Path, train: Train | None = None, **more: Any) -> Path:
    """The recipe's file, and its data beside it if there are none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        write_data(folder / "data")
    phase = {"steps": 12, "batch_size": 4, "pad_multiple": 8, "log_every": 3, "save_every": 4, "learning_rate": 1e-2}
    given = train if isinstance(train, list) else [train or {}]
    stages = [phase | {"tasks": ["speech -> text"]} | each for each in given]
    recipe = {
        "name": "tiny",
        "spec": spec(),
        "data": "data",
        "train": stages if isinstance(train, list) else stages[0],
        "evaluate": {"split": "test", "max_tokens": 6, "batch_size": 4},
        **more,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder / "recipe.yaml"


def tiny_recipe(folder: Path, train: Train | None = None, **more: Any) -> Recipe:
    return load_recipe(write_recipe(folder, train, **more))


def command(*arguments: str | Path) -> list[str]:
    """The command line that runs zippkit in a process of its own, which takes seconds to import what it needs."""
    return [sys.executable, "-c", "from zippkit.cli import main; main()", *map(str, arguments)]


def zippkit(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process; an exception that it lets through fails the test.

    Returns:
        what a process of its own would have returned and printed.
    """
    out, err = io.StringIO(), io.StringIO()
    words = ["zippkit", *map(str, arguments)]
    with (
        patch.object(sys, "argv", words),
        chdir(cwd or Path.cwd()),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return subprocess.CompletedProcess(words, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def saved(run: Path, phase: str = "train") -> dict[str, Any]:
    """Every tensor of a run's last checkpoint, the optimizer's among them."""
    last = RunFolder(run).checkpoints(phase)[-1]
    state = {"model": load(last).model.state_dict(), "optimizer": read_tensors(last / "optimizer.safetensors")}
    return {f"{kind} {name}": tensor for kind, tensors in state.items() for name, tensor in tensors.items()}


@cache
def _folder() -> Path:
    """A folder that lasts as long as the tests."""
    folder = Path(tempfile.mkdtemp(prefix="zippkit-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def finished_run() -> Path:
    """A run of a pre-training phase and a main one; look at it, but leave it as it is."""
    folder = _folder() / "finished"
    phase = {"steps": 100, "batch_size": 12, "learning_rate": 2e-2, "save_every": 90}
    train(tiny_recipe(folder, phase, pretrain={"text": phase}), folder / "run")
    return folder / "run"


@cache
def demo_run() -> Path:
    """A few steps on the embedded data, which has a tokenizer for sound."""
    few = {"steps": 2, "batch_size": 2}
    towers = {
        name: {
            "kind": "decoder",
            "config": {"vocab_size": size, "dim": 16, "n_layers": 1, "n_heads": 2},
            "frame": frame,
        }
        for name, size, frame in (
            ("text", 13, {"begin": 1, "end": 2}),
            ("speech", 1026, {"begin": 1024, "end": 1025}),
        )
    }
    links = [
        {"kind": "gated_cross_attention", "from": a, "into": b, "every": 1, "config": {"n_heads": 2}}
        for a, b in (("speech", "text"), ("text", "speech"))
    ]
    recipe = {
        "name": "demo",
        "spec": {"name": "demo", "towers": towers, "links": links},
        "data": str(DEMO / "data"),
        "train": few,
        "evaluate": {"limit": 8, "max_tokens": 4},
    }
    folder = _folder() / "demo"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(load_recipe(folder / "recipe.yaml"), folder / "run")
    return folder / "run"


def copied(run: Path, to: Path) -> Path:
    """A copy of a run, its recipe and data beside it, to write into."""
    shutil.copytree(run.parent, to)
    return to / run.name
