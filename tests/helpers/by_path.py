"""Modules of programs that are no package, such as `benchmarks/`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def program(folder: str, name: str) -> ModuleType:
    """A file of a folder of the repository, which finds its neighbours as when it is run."""
    place = str(ROOT / folder)
    sys.path.insert(0, place)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(place)
