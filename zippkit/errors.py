"""Mistakes that a user can make, said in one line each: place, value, expectation, nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


class ZippkitError(Exception):
    """A mistake of the user's. The command line prints it without a traceback and exits with 2."""


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong in a YAML file."""

    file: str
    line: int
    """1-based; 0 where no line is known (a value given on the command line, say)."""
    key: str
    """Dotted path inside the file, such as ``links[0].every``; empty for the file as a whole."""
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class SpecError(ZippkitError):
    """Every problem found in a spec or a recipe, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class DataError(ZippkitError):
    """Audio, transcripts, units or a dataset folder that cannot be used."""


class CheckpointError(ZippkitError):
    """Weights that are cut short, of another composition, or not safetensors."""


class WriteError(ZippkitError):
    """A file or folder that cannot be written: the disk is full or read-only, or it belongs to somebody else."""

    def __init__(self, target: str | Path, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{target}: cannot be written: {reason}")


def did_you_mean(name: object, valid: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest valid name, and otherwise the first of the valid names themselves."""
    names = sorted(valid)
    # Comparing a name with each of 90,000 parameters takes a minute.
    near = difflib.get_close_matches(str(name), names[:1000], n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    if not names:
        return "; there are none"
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return f"; valid: {', '.join(names[:12])}{more}"


def some_of(messages: Iterable[str]) -> str:
    """The first five of several messages, in one line."""
    listed = list(messages)
    return "; ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
