"""The reader of `evaluation.json`: what is written is read again, and what is something else is told."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import isnan

import pytest

from zippkit.errors import ZippkitError
from zippkit.evaluation.evaluation_file import (
    Answer,
    Evaluated,
    NextScore,
    Retention,
    SpeechScore,
    Spoken,
    TaskScore,
    parse_evaluation,
)  # fmt: skip

WRITTEN = TaskScore("speech -> text", 0.9, 0.2, (Answer("a", "one", "two"),))
HEARD = SpeechScore("text -> speech", "x", 2, 0.1, 0.2, 0.3, (Spoken("a", "r", "h", "t", 1.0, 1.0, 1.0, "s.wav"),))
DEV = Evaluated("dev", (WRITTEN,), ())
EVALUATED = Evaluated(
    "test", (WRITTEN, HEARD), (Retention("text", True, 1.0, 1.5),), ("b: c",), (NextScore("t", 0.5, 4),), (DEV,)
)


def test_what_was_written_is_read_again() -> None:
    read = parse_evaluation(json.loads(json.dumps(asdict(EVALUATED))))
    assert read == EVALUATED
    assert (read.written, read.spoken, read.retention[0].change) == ((WRITTEN,), (HEARD,), 0.5)


def test_unknown_keys_are_ignored_and_missing_numbers_are_nan() -> None:
    (task,) = parse_evaluation({"tasks": [{"task": "a -> b", "new": 1}]}).tasks
    assert (task.task, task.answers) == ("a -> b", ())
    assert isnan(task.wer)


@pytest.mark.parametrize("data", [[1], "text", {"tasks": 3}, {"tasks": ["a"]}, {"retention": [[1]]}])
def test_something_else_is_told(data: object) -> None:
    with pytest.raises(ZippkitError, match=r"evaluation\.json: not what `zippkit eval` writes"):
        parse_evaluation(data)  # type: ignore[arg-type]
