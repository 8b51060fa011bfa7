"""Scores of tasks that end in speech: units are turned into sound, and a recogniser writes down what it hears.

As in the paper (section 4.1.4), words are counted against the text (`gold`) and against what the recogniser hears in
the true speech's own units (`target`); the true units against the text are the best that is to be had (`oracle`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zippkit.composition import Composition
from zippkit.data.audio import Wave, resample, write_audio
from zippkit.data.dataset import Dataset
from zippkit.data.normalize import normalize
from zippkit.data.speech_tokenizer import Ids, SpeechTokenizer
from zippkit.errors import DataError
from zippkit.evaluation.evaluation_file import SpeechScore, Spoken
from zippkit.evaluation.recognisers.base import Scorer
from zippkit.generation.api import generate_batch
from zippkit.spec.phase import Evaluation
from zippkit.spec.task import Task
from zippkit.system.progress import progress
from zippkit.training.task_data import TaskData

SHORTEST_PAUSE = 0.1
"""Seconds of silence put around a sound, which recognisers expect."""


def ends_in_speech(task: Task, dataset: Dataset) -> bool:
    """Whether what the task predicts can be turned into sound."""
    column = dataset.manifest.modalities[task.target]
    return bool(task.conditions) and task.beside is None and column.kind == "units" and column.file is not None


def transcript_of(task: Task, dataset: Dataset, split: str) -> str | None:
    """The modality that says in words what is to be heard: a given one if there is one; None if some have no words."""
    texts = [name for name, column in dataset.manifest.modalities.items() if column.is_text]
    rows = dataset.split(split)
    n_examples = len(rows.having(task.modalities))
    whole = [name for name in texts if len(rows.having([*task.modalities, name])) == n_examples]
    return min(whole, key=lambda name: name not in task.conditions, default=None)


def count_errors(reference: str, hypothesis: str) -> int:
    """Substitutions, deletions and insertions (jiwer); every word is one where the reference is empty."""
    import jiwer

    if not reference:
        return len(hypothesis.split())
    found = jiwer.process_words(reference, hypothesis)
    return int(found.substitutions + found.deletions + found.insertions)


def score_speech(
    task: Task,
    zipped: Composition,
    dataset: Dataset,
    split: str,
    how: Evaluation,
    scorer: Scorer,
    folder: Path,
    label: str = "",
) -> SpeechScore:
    """Generate, listen and count; the first few sounds are written into ``folder``, under ``label`` or the split.

    Raises:
        DataError: no such split, it is empty, or it has no words for some example.
    """
    data = TaskData(task, dataset, dataset.split(split), zipped.graph.readers)
    indices = range(min(len(data), how.limit or len(data)))
    words, voice = transcript_of(task, dataset, split), dataset.tokenizer(task.target)
    if words is None or not isinstance(voice, SpeechTokenizer):
        raise DataError(f"{dataset.path}: task {str(task)!r} cannot be scored; expected speech units and a transcript")
    hear = Listener(scorer, voice, how.best_of)
    ids, answers = data.ids(indices), []
    with progress(f"{task} (speech)", len(indices)) as advance:
        for start in range(0, len(indices), how.batch_size):
            batch = indices[start : start + how.batch_size]
            prompts = [data.prompt(i) for i in batch]
            rows = generate_batch(
                zipped, prompts, task.generated, how.max_tokens, how.sampling, batch[0], task.multimodal
            )
            for i, row in zip(batch, rows, strict=True):
                reference = normalize(str(data.item(i, words)))
                wave, hypothesis = hear(np.asarray(row[-1].tokens), reference)
                _, target = hear(np.asarray(data.item(i, task.target)), reference)
                sound = None
                if i < how.samples:
                    sound = _write(folder, f"{label or split}-{task}-{ids[i]}", wave, voice.sample_rate)
                answers.append(spoken(ids[i], reference, hypothesis, target, sound))
                advance(len(answers))
    kind = how.scorer_kind
    return SpeechScore(str(task), kind, how.best_of, *total_rates(answers), tuple(answers))


def spoken(name: str, reference: str, hypothesis: str, target: str, sound: str | None = None) -> Spoken:
    """An answer with its own word error rates."""
    pairs = ((reference, hypothesis), (target, hypothesis), (reference, target))
    gold, to_target, oracle = (_rate([pair]) for pair in pairs)
    return Spoken(name, reference, hypothesis, target, gold, to_target, oracle, sound)


def total_rates(answers: Sequence[Spoken]) -> tuple[float, float, float]:
    """Errors over words of all answers: gold, target, oracle."""
    pairs: tuple[Callable[[Spoken], tuple[str, str]], ...] = (
        lambda a: (a.reference, a.hypothesis),
        lambda a: (a.target, a.hypothesis),
        lambda a: (a.reference, a.target),
    )
    gold, target, oracle = (_rate([pair(answer) for answer in answers]) for pair in pairs)
    return gold, target, oracle


def _rate(pairs: Sequence[tuple[str, str]]) -> float:
    n_words = sum(len(reference.split()) for reference, _ in pairs)
    return sum(count_errors(*pair) for pair in pairs) / max(1, n_words)


@dataclass(frozen=True)
class Listener:
    """Units to the words that are heard in them."""

    scorer: Scorer
    voice: SpeechTokenizer
    best_of: int = 1

    def __call__(self, ids: Ids, reference: str = "") -> tuple[Wave, str]:
        """The sound and its words, of the seed with the fewest errors (the first of several)."""
        units = np.asarray(ids, np.int64)
        # A tower may have more ids than the tokenizer; they sound like nothing.
        units = units[(units >= 0) & (units < self.voice.begin)]
        waves = [self.voice.to_sound(units, seed) for seed in range(self.best_of)]
        heard = [normalize(text) for text in self.scorer.transcribe([self._ready(wave) for wave in waves])]
        best = min(range(self.best_of), key=lambda i: count_errors(reference, heard[i]))
        return waves[best], heard[best]

    def _ready(self, wave: Wave) -> Wave:
        if not len(wave):
            return wave
        rate = self.scorer.sample_rate
        return np.pad(resample(wave, self.voice.sample_rate, rate), round(SHORTEST_PAUSE * rate))


def _write(run: Path, name: str, wave: Wave, rate: int) -> str:
    """The path of a WAV file, from the run; silence where nothing was generated, so that every sample can be played."""
    file = Path("samples") / (re.sub(r"[^\w.-]+", "_", name) + ".wav")
    (run / "samples").mkdir(parents=True, exist_ok=True)
    write_audio(run / file, wave if len(wave) else np.zeros(rate // 10, np.float32), rate)
    return str(file)
