"""Answers of a run to read and to hear: wrong ones first, the words that count as errors marked."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from zippkit.errors import ZippkitError
from zippkit.evaluation.evaluation_file import Answer, SpeechScore, Spoken, TaskScore
from zippkit.report.html import xml_text
from zippkit.system.files import inside

MOST_EXAMPLES, MOST_WRONG = 20, 15
"""Answers shown for a task, and how many of them may be wrong while there are right ones to show."""


class Pair(NamedTuple):
    """An answer beside its reference, wrong words marked."""

    id: str
    reference: Markup
    hypothesis: Markup

    @property
    def wrong(self) -> bool:
        """Whether any word is marked."""
        return "<mark>" in self.reference + self.hypothesis


class Sound(NamedTuple):
    """Generated speech, and what is heard in it."""

    answer: Spoken
    content: str
    """Base64 of a WAV file; empty where the file is gone."""
    file: str


class Examples(NamedTuple):
    """Examples of one task, as the page shows them."""

    task: str
    n_wrong: int
    n: int
    sounds: list[Sound]
    shown: list[Pair]


def examples(score: TaskScore | SpeechScore, run: Path) -> Examples:
    """Choose the answers of one task that are shown, and read their sounds.

    Raises:
        ZippkitError: ``evaluation.json`` names a sound outside the run.
    """
    pairs = [_pair(answer) for answer in score.answers]
    wrong = [pair for pair in pairs if pair.wrong]
    right = [pair for pair in pairs if not pair.wrong]
    shown = wrong[: max(MOST_WRONG, MOST_EXAMPLES - len(right))]
    shown += right[: MOST_EXAMPLES - len(shown)]
    sounds = [_sound(run, a, a.sound) for a in score.answers if isinstance(a, Spoken) and a.sound]
    return Examples(score.task, len(wrong), len(pairs), sounds, shown)


def _pair(answer: Answer | Spoken) -> Pair:
    return Pair(answer.id, *marked(answer.reference, answer.hypothesis))


def _sound(run: Path, answer: Spoken, name: str) -> Sound:
    """The sound itself, so that the page stays one file."""
    try:
        file = inside(run, name)
    except ValueError as error:
        raise ZippkitError(f"{run / 'evaluation.json'}: sound: {error}") from None
    content = base64.b64encode(file.read_bytes()).decode() if file.is_file() else ""
    return Sound(answer, content, file.name)


def marked(reference: str, hypothesis: str) -> tuple[Markup, Markup]:
    """Return both texts as HTML, with the words marked that the word error rate counts (jiwer's alignment)."""
    import jiwer

    if not reference:
        # jiwer aligns nothing with an empty text.
        return Markup(""), _with_marks([hypothesis], {0}) if hypothesis else Markup("")
    found = jiwer.process_words(reference, hypothesis)
    wrong = [chunk for chunk in found.alignments[0] if chunk.type != "equal"]
    missed = {i for chunk in wrong for i in range(chunk.ref_start_idx, chunk.ref_end_idx)}
    added = {i for chunk in wrong for i in range(chunk.hyp_start_idx, chunk.hyp_end_idx)}
    return _with_marks(found.references[0], missed), _with_marks(found.hypotheses[0], added)


def _with_marks(words: Sequence[str], wrong: set[int]) -> Markup:
    clean = [xml_text(word) for word in words]
    return Markup(" ").join(Markup("<mark>{}</mark>").format(w) if i in wrong else w for i, w in enumerate(clean))
