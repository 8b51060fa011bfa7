"""Where a tokenizer comes from: it is there, it is in a file, or it is trained with settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeAlias, TypeVar

from zippkit.data.discrete_tokenizer import DiscreteTokenizer, Progress, registered
from zippkit.errors import DataError
from zippkit.spec.kinds import Strict
from zippkit.spec.validation import validate

Kind = TypeVar("Kind", bound=DiscreteTokenizer)

Settings: TypeAlias = Strict | Mapping[str, Any] | DiscreteTokenizer | str | Path | None
"""Of a tokenizer to train, or a trained one, or its file."""


@dataclass(frozen=True)
class TokenizerSource(Generic[Kind]):
    """A trained tokenizer, or what one is to be trained with."""

    trained: Kind | None
    cls: type[Kind]
    config: Any

    @classmethod
    def of(cls, given: Settings, kind: str, base: type[Kind], where: str, what: str) -> Self:
        """Look what is given.

        Args:
            given: settings, a tokenizer or its file; None is the settings' defaults.
            kind: registered kind, unless a tokenizer is given.
            base: what it must be.
            where: the modality's settings on the command line, for messages, such as ``units``.
            what: the modality, for messages.

        Raises:
            DataError: the settings are not of the kind, or the file is not a tokenizer of it; names every setting.
        """
        if isinstance(given, base):
            return cls(given, type(given), None)
        found = registered(kind, base, what)
        if isinstance(given, str | Path):
            return cls(found.load(given), found, None)
        if isinstance(given, Mapping) or given is None:
            config, complaints = validate(found.Config, dict(given or {}), (where,))
            if config is None:
                if not given:
                    raise DataError(f"tokenizer {kind}: {'; '.join(message for _, message in complaints)}")
                raise DataError("; ".join(f"{'.'.join(map(str, place))}: {message}" for place, message in complaints))
            return cls(None, found, config)
        if not isinstance(given, found.Config):
            raise DataError(f"tokenizer {kind} takes a {found.Config.__name__}, got a {type(given).__name__}")
        return cls(None, found, given)

    def make(self, examples: Iterable[Any], seed: int, progress: Progress | None) -> Kind:
        """The tokenizer; examples are read if it is to be trained."""
        return self.trained or self.cls.train(examples, self.config, seed, progress)
