"""How a run's page was made: seed, data, versions, machine, recipe and spec."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from zippkit.spec.recipe import Recipe
from zippkit.training.device import backend
from zippkit.training.run_folder import RunFolder


class Source(NamedTuple):
    """A file that is shown word for word."""

    title: str
    file: str
    text: str


def origin(recipe: Recipe) -> dict[str, str]:
    """Return facts by name; those that are not known here are left out."""
    facts = {
        "seed": str(recipe.seed),
        "data": ", ".join(str(source.path) for source in recipe.sources.values()),
        "zippkit": version("zippkit"),
        "git commit": commit(),
        "python, torch": f"{platform.python_version()}, {torch.__version__}",
        "processor": f"{os.cpu_count()} x {_processor()}",
        "threads": str(torch.get_num_threads()),
        "device": backend().name,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return {name: value for name, value in facts.items() if value}


def sources(run: RunFolder) -> list[Source]:
    """Return the run's recipe and spec."""
    files = (("Recipe", run.recipe_file), ("Spec", run.model / "spec.yaml"))
    return [Source(title, file.name, file.read_text(encoding="utf-8")) for title, file in files]


def commit() -> str:
    """Return the commit of the checkout that zippkit runs from; empty where it was installed without one."""
    here = Path(__file__).parent
    try:
        # An environment inside somebody's own checkout must not give us that one's commit.
        _git(here, "ls-files", "--error-unmatch", "__init__.py")
        return _git(here, "describe", "--always", "--dirty=, with changes", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    linux = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*:\s*(.+)$", linux.read_text(), re.MULTILINE) if linux.exists() else []
    return models[0] if models else platform.processor() or platform.machine()
