"""Results of an evaluation, and the reader of ``evaluation.json``: the one file that knows its keys. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import nan
from typing import Any, Protocol, TypeVar

from zippkit.errors import ZippkitError

FILE = "evaluation.json"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Answer:
    """Reference and hypothesis of one example."""

    id: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class TaskScore:
    """Word error rates of one task that ends in text."""

    task: str
    wer_before: float
    """Word error rate of the untrained composition, whose links are the identity."""
    wer: float
    answers: tuple[Answer | Spoken, ...]


@dataclass(frozen=True)
class Spoken:
    """One example, in the words that `normalize` gives."""

    id: str
    reference: str
    hypothesis: str
    """Words heard in the generated speech, from the best of the seeds."""
    target: str
    """Words heard in the true speech's units, from the best of the seeds."""
    wer: float
    """``hypothesis`` against ``reference``."""
    wer_target: float
    """``hypothesis`` against ``target``."""
    wer_oracle: float
    """``target`` against ``reference``."""
    sound: str | None = None
    """A WAV file of the generated speech, inside the run; only the first few have one."""


@dataclass(frozen=True)
class SpeechScore:
    """Word error rates of one task that ends in speech: errors over words, of all examples together."""

    task: str
    scorer: str
    best_of: int
    wer: float
    wer_target: float
    wer_oracle: float
    answers: tuple[Answer | Spoken, ...]


@dataclass(frozen=True)
class Retention:
    """A tower's loss on its own modality, in nats per token, alone and inside the composition."""

    tower: str
    frozen: bool
    before: float
    after: float

    @property
    def change(self) -> float:
        """Exactly 0 for a frozen tower."""
        return self.after - self.before


@dataclass(frozen=True)
class NextScore:
    """Accuracy of predicting which modality follows a segment, over one task's examples."""

    task: str
    accuracy: float
    """Share of segments whose successor is predicted correctly."""
    n_segments: int


@dataclass(frozen=True)
class Evaluated:
    """Everything that one evaluation found on a split."""

    split: str
    tasks: tuple[TaskScore | SpeechScore, ...]
    """Those that end in text, then those that end in speech."""
    retention: tuple[Retention, ...]
    skipped: tuple[str, ...] = ()
    """Tasks that end in speech and were not scored, each with the reason."""
    next: tuple[NextScore, ...] = ()
    """Next-modality accuracy of each task, for a model that learns it."""
    more: tuple[Evaluated, ...] = ()
    """The same of the recipe's other splits."""
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Settings that were not the recipe's, by key; none in the run's own scores."""

    @property
    def written(self) -> tuple[TaskScore, ...]:
        """Scores of tasks that end in text."""
        return tuple(task for task in self.tasks if isinstance(task, TaskScore))

    @property
    def spoken(self) -> tuple[SpeechScore, ...]:
        """Scores of tasks that end in speech."""
        return tuple(task for task in self.tasks if isinstance(task, SpeechScore))


class JsonFolder(Protocol):
    """A folder of JSON files, such as a run's."""

    def read_json(self, name: str) -> Any:
        """Return the content of a file; None where it is missing."""


def read_evaluation(run: JsonFolder) -> Evaluated | None:
    """Read a run's ``evaluation.json``; None before `zippkit eval`.

    Raises:
        ZippkitError: the file is something else.
    """
    data = run.read_json(FILE)
    return None if not data else parse_evaluation(data)


def parse_evaluation(data: Mapping[str, Any]) -> Evaluated:
    """Return the content of ``evaluation.json``; unknown keys are ignored, missing numbers are NaN.

    Raises:
        ZippkitError: it is something else.
    """
    try:
        return _split(data)
    except (AttributeError, TypeError, ValueError) as error:
        raise ZippkitError(f"{FILE}: not what `zippkit eval` writes: {error}") from None


def _split(data: Mapping[str, Any]) -> Evaluated:
    return Evaluated(
        split=str(data.get("split", "")),
        tasks=tuple(map(_task, data.get("tasks", ()))),
        retention=tuple(_made(Retention, row) for row in data.get("retention", ())),
        skipped=tuple(map(str, data.get("skipped", ()))),
        next=tuple(_made(NextScore, row) for row in data.get("next", ())),
        more=tuple(map(_split, data.get("more", ()))),
        overrides={str(key): str(value) for key, value in data.get("overrides", {}).items()},
    )


def _task(data: Mapping[str, Any]) -> TaskScore | SpeechScore:
    answers = {"answers": tuple(map(_answer, data.get("answers", ())))}
    return _made(SpeechScore, {**data, **answers}) if "scorer" in data else _made(TaskScore, {**data, **answers})


def _answer(data: Mapping[str, Any]) -> Answer | Spoken:
    """An answer in speech has a ``target`` or a ``sound``."""
    spoken = isinstance(data.get("target"), str) or data.get("sound") is not None
    return _made(Spoken, {**data, "target": data.get("target") or ""}) if spoken else _made(Answer, data)


def _made(kind: type[_T], data: Mapping[str, Any]) -> _T:
    """A dataclass of the keys that it knows."""
    missing = {"float": nan, "int": 0, "str": ""}
    known = {field.name: data.get(field.name, missing.get(str(field.type))) for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**known)
