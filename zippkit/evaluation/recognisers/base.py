"""Scorers turn sound into words. Kinds are found by name, in the entry points `zippkit.scorers`.

A package adds a kind with one class and one line::

    [project.entry-points."zippkit.scorers"]
    my_recogniser = "my_package:MyRecogniser"
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from zippkit.data.audio import Wave
from zippkit.errors import ZippkitError
from zippkit.spec.kinds import Strict
from zippkit.spec.registry import SCORERS, implementation
from zippkit.spec.validation import validate
from zippkit.system.extras import EXTRAS, MissingExtraError, is_installed

DEFAULT = "moonshine"


class MissingScorerError(MissingExtraError):
    """A scorer whose packages are not installed."""


class Scorer(ABC):
    """A speech recogniser with its weights in place; made by `open_scorer` from its Config."""

    Config: ClassVar[type[Strict]]
    """Its settings: what `evaluate.scorer_config` takes."""

    @abstractmethod
    def __init__(self, config: Any) -> None:
        """Load the weights.

        Raises:
            MissingScorerError: a package is not installed; names the extra that brings it.
        """

    @property
    @abstractmethod
    def sample_rate(self) -> int:
        """Sample rate of the sound that ``transcribe`` takes, in Hz; the caller resamples."""

    @abstractmethod
    def transcribe(self, waves: Sequence[Wave]) -> list[str]:
        """The words of each whole utterance, as the recogniser writes them; empty where it hears none."""


def pinned(package: str, file: str, sha256: str) -> bytes:
    """The contents of a package's file: other weights would give other scores without a word.

    Raises:
        ZippkitError: it is missing, or not the one that the scores were measured with.
    """
    # Found without importing the package, which would load its own libraries.
    found = find_spec(package)
    path = Path((found.submodule_search_locations or [""])[0] if found else "") / file
    fix = "install it again: pip install --force-reinstall 'zippkit[speech-eval]'"
    if not path.is_file():
        raise ZippkitError(f"{path}: no such file, expected in the package {package}; {fix}")
    content = path.read_bytes()
    seen = hashlib.sha256(content).hexdigest()
    if seen != sha256:
        raise ZippkitError(f"{path}: SHA-256 is {seen}, expected {sha256}; {fix}")
    return content


def extra_is_installed() -> bool:
    """Whether the packages of the extra ``speech-eval`` are there."""
    return all(is_installed(module) for module, (extra, _) in EXTRAS.items() if extra == "speech-eval")


def open_scorer(kind: str, config: Mapping[str, Any] | None = None) -> Scorer:
    """A registered scorer.

    Raises:
        UnknownKindError: nobody registers it; names the nearest.
        MissingScorerError: a package that it needs is not installed.
        ZippkitError: a setting is wrong, or what is registered is no scorer.
    """
    found = implementation(SCORERS, kind)
    if not (isinstance(found, type) and issubclass(found, Scorer)):
        raise ZippkitError(f"scorer kind {kind!r} is {found!r}, expected a subclass of Scorer")
    settings, complaints = validate(found.Config, dict(config or {}))
    if settings is None or complaints:
        told = [f"evaluate.scorer_config.{'.'.join(map(str, place))}: {message}" for place, message in complaints]
        raise ZippkitError("\n".join(told))
    return found(settings)
