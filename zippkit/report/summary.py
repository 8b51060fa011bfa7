"""The head of a run's page: one paragraph and a few tiles on what was learnt, what was kept and what is proved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from zippkit.composition import Composition
from zippkit.evaluation.evaluation_file import Evaluated, Retention, SpeechScore, TaskScore
from zippkit.report.html import arrowed, percent


class Tile(NamedTuple):
    """A number in large, and what it is."""

    number: str
    what: str
    look: str = ""
    """``good``, ``bad`` or none."""


@dataclass
class Summary:
    """Sentences and tiles, in their order on the page."""

    sentences: list[str] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)

    def add(self, sentence: str, *tiles: Tile) -> None:
        """Append a sentence and the tiles that say the same."""
        self.sentences.append(sentence)
        self.tiles += tiles


def summary(zipped: Composition, scores: Evaluated | None, proofs: Sequence[Mapping[str, Any]]) -> Summary:
    """Sum up a run: its scores if it has some, and its certificates."""
    spec, n_sites = zipped.spec, len(zipped.graph.sites)
    sites = f"{n_sites} site" if n_sites == 1 else f"{n_sites} sites"
    told = Summary([f"{spec.name} zips {len(spec.towers)} towers ({', '.join(spec.towers)}) at {sites}."])
    if scores is None:
        told.add("It has not been scored yet.")
    else:
        for task in scores.tasks:
            _add_task(told, task)
        _add_retention(told, [row for row in scores.retention if row.frozen])
    _add_proofs(told, proofs)
    return told


def _add_task(told: Summary, task: TaskScore | SpeechScore) -> None:
    name, rate = arrowed(task.task), percent(task.wer)
    if isinstance(task, SpeechScore):
        oracle = percent(task.wer_oracle)
        sentence = f"{task.scorer} hears {name} with a word error rate of {rate}, true units with {oracle}."
        told.add(sentence, Tile(rate, f"word error rate, {name} (oracle {oracle})"))
        return
    before, n = percent(task.wer_before), len(task.answers)
    sentence = f"Training took the word error rate of {name} from {before} to {rate} ({n} examples)."
    told.add(sentence, Tile(f"{before} → {rate}", f"word error rate, {name}"))


def _add_retention(told: Summary, frozen: Sequence[Retention]) -> None:
    if not frozen:
        return
    names = ", ".join(row.tower for row in frozen)
    if moved := [row.tower for row in frozen if row.change]:
        told.add(
            f"What is frozen ({names}) CHANGED: {', '.join(moved)}.",
            Tile("CHANGED", f"change of the frozen: {names}", "bad"),
        )
    else:
        told.add(
            f"What is frozen ({names}) is unchanged: its loss alone and zipped differs by 0 exactly.",
            Tile("0 exactly", f"change of the frozen: {names}", "good"),
        )


def _add_proofs(told: Summary, proofs: Sequence[Mapping[str, Any]]) -> None:
    n, fails = len(proofs), [proof["name"] for proof in proofs if not proof["passed"]]
    failing = f"Of {n} certificates, these FAIL: {', '.join(fails)}."
    tile = Tile(f"{n - len(fails)} of {n}", "certificates hold", "bad" if fails else "good")
    told.add(failing if fails else f"All {n} certificates hold.", tile)
