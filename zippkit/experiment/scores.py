"""Content of ``evaluation.json`` as sentences and retention for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from zippkit.data.normalize import normalize
from zippkit.evaluation.evaluation_file import Answer, Spoken, parse_evaluation
from zippkit.spec.words import Name


class Sentence(NamedTuple):
    """Word errors of one example."""

    id: str
    errors: int
    words: int
    """In the reference."""
    length: int
    """Words in the text itself, by which sentences are grouped."""

    @property
    def rate(self) -> float:
        """Word errors over words of the reference; over 1 where that is empty."""
        return self.errors / max(1, self.words)


class Kept(NamedTuple):
    """A tower's loss on its own modality, in nats per token: alone before training, and inside the composition."""

    before: float
    after: float

    @property
    def change(self) -> float:
        """Exactly 0 for a frozen tower."""
        return self.after - self.before


@dataclass(frozen=True)
class Scores:
    """Scores of one run on one split."""

    answers: Mapping[tuple[str, str], list[Sentence]]
    """By task and reference (gold, target or oracle)."""
    retention: Mapping[Name, Kept]

    def sentences(self, task: str, reference: str = "gold") -> list[Sentence]:
        """None where the task was not scored against this reference."""
        return self.answers.get((task, reference), [])


def read_scores(evaluation: Mapping[str, Any]) -> Scores:
    """Return the scores of one split, from the content of ``evaluation.json``."""
    found = parse_evaluation(evaluation)
    answers: dict[tuple[str, str], list[Sentence]] = {}
    for task in found.tasks:
        for answer in task.answers:
            for against, sentence in _sentences(answer).items():
                answers.setdefault((task.task, against), []).append(sentence)
    return Scores(answers, {row.tower: Kept(row.before, row.after) for row in found.retention})


def _sentences(answer: Answer | Spoken) -> dict[str, Sentence]:
    """An answer's word errors by what they are counted against; a text answer has only ``gold``.

    Of speech, ``hypothesis`` is what the scorer heard in it, and ``target`` what it heard in the true speech, all three
    normalised already. Text is normalised here: what a word is must not depend on the way the task goes.
    """
    name, gold, heard = answer.id, answer.reference, answer.hypothesis
    if not isinstance(answer, Spoken):
        return {"gold": _sentence(name, normalize(gold), normalize(heard))}
    found = {"gold": _sentence(name, gold, heard), "oracle": _sentence(name, gold, answer.target)}
    found["target"] = _sentence(name, answer.target, heard)._replace(length=found["gold"].length)
    return found


def _sentence(name: str, reference: str, hypothesis: str) -> Sentence:
    # It knows generation and so torch, without which experiments are checked.
    from zippkit.evaluation.speech_scores import count_errors

    n_words = len(reference.split())
    return Sentence(name, count_errors(reference, hypothesis), n_words, n_words)
