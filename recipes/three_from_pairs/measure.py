"""Measure a run: does speech become an image of the same digit, and an image speech, whatever was trained?

    python recipes/three_from_pairs/measure.py runs/three_from_pairs

writes ``three.json`` and ``three.png`` into the run folder and prints the numbers. Ways from one to the other:

direct    the prompt, then the answer: through the link that joins the two towers
silent    the prompt, a text segment without a word in it, the answer: through what text has made of the prompt
chain     the prompt, a generated word, the answer: one sequence
cascade   the prompt, a generated word; then the answer to that word alone: two sequences
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judges import Judge, judge

from zippkit.batch.batch import Segment
from zippkit.composition import Composition, load
from zippkit.data.dataset import Dataset
from zippkit.data.readers import DIGITS
from zippkit.errors import ZippkitError
from zippkit.generation.api import generate_batch
from zippkit.training.data_checks import check_tokenizers
from zippkit.training.device import backend
from zippkit.training.run_folder import RunFolder

AT_ONCE = 100
LONGEST = 64
"""Tokens of an answer: an image's pixels, and more than any recording has units."""

Prompt = list[Segment]
Way = Callable[[Composition, list[Prompt], str], list[Any]]
"""Called with the prompts and what to answer with; gives the ids of each answer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder, as `zippkit train` writes it")
    parser.add_argument("--limit", type=int, help="only the first so many prompts of each kind")
    arguments = parser.parse_args()
    try:
        measured = measure(arguments.run, arguments.limit)
    except ZippkitError as error:
        parser.exit(2, f"{error}\n")
    print(json.dumps(measured, indent=2))


def direct(zipped: Composition, prompts: list[Prompt], target: str) -> list[Any]:
    return _answers(zipped, prompts, [target])


def silent(zipped: Composition, prompts: list[Prompt], target: str) -> list[Any]:
    return _answers(zipped, [[*prompt, Segment("text", [])] for prompt in prompts], [target])


def chain(zipped: Composition, prompts: list[Prompt], target: str) -> list[Any]:
    return _answers(zipped, prompts, ["text", target])


def cascade(zipped: Composition, prompts: list[Prompt], target: str) -> list[Any]:
    words = _answers(zipped, prompts, ["text"])
    return _answers(zipped, [[Segment("text", word)] for word in words], [target])


WAYS: tuple[Way, ...] = (direct, silent, chain, cascade)


def _answers(zipped: Composition, prompts: list[Prompt], outputs: list[str]) -> list[Any]:
    """The ids of the last segment that is generated, for each prompt."""
    found: list[Any] = []
    for start in range(0, len(prompts), AT_ONCE):
        rows = generate_batch(zipped, prompts[start : start + AT_ONCE], outputs, LONGEST)
        found += [row[-1].tokens for row in rows]
    return found


@dataclass(frozen=True)
class Asked:
    """The test items of one modality."""

    modality: str
    prompts: list[Prompt]
    words: list[str]

    @classmethod
    def of(cls, dataset: Dataset, modality: str, limit: int | None) -> Asked:
        split = dataset.split("test")
        examples = [split[int(i)] for i in split.having(["text", modality])[:limit]]
        prompts = [[Segment(modality, example.items[modality])] for example in examples]
        return cls(modality, prompts, [str(example.items["text"]) for example in examples])


def measure(path: Path, limit: int | None = None) -> dict[str, Any]:
    """Everything that this page tells, as it is written to ``three.json``."""
    run = RunFolder(path)
    recipe = run.recipe()
    zipped = load(path)
    zipped.model.to(backend(recipe.device).device())
    dataset = Dataset.open(recipe.data)
    check_tokenizers(dataset, zipped.graph.modalities, run.fingerprints())
    judges = {modality: judge(dataset, modality) for modality in ("speech", "image")}
    decode, encode = dataset.text_tokenizer("text").decode, dataset.text_tokenizer("text").encode
    words = Asked("text", [[Segment("text", encode(word))] for word in DIGITS], list(DIGITS))
    measured: dict[str, Any] = {"judges": {name: each.accuracy for name, each in judges.items()}}
    drawn: dict[str, list[Any]] = {}
    for source, target in (("speech", "image"), ("image", "speech")):
        asked = Asked.of(dataset, source, limit)
        heard = [decode(ids) for ids in direct(zipped, asked.prompts, "text")]
        measured[f"{source} -> text"] = _score(heard, asked.words, heard)
        spoken = direct(zipped, words.prompts, target)
        measured[f"text -> {target}"] = _judged(judges[target], spoken, words.words)
        for way in WAYS:
            answers = way(zipped, asked.prompts, target)
            measured[f"{source} -> {target}, {way.__name__}"] = _judged(judges[target], answers, asked.words)
            if target == "image":
                drawn[way.__name__] = answers
    run.write_json("three.json", measured)
    _draw(path / "three.png", dataset, Asked.of(dataset, "speech", limit), drawn)
    return measured


def _judged(judge: Judge, answers: Sequence[Any], words: Sequence[str]) -> dict[str, float]:
    return _score(judge.words(answers), words, [tuple(map(int, ids)) for ids in answers])


def _score(said: Sequence[str], words: Sequence[str], answers: Sequence[Any]) -> dict[str, float]:
    right = sum(one == other for one, other in zip(said, words, strict=True))
    return {"right": right / len(words), "prompts": len(words), "different_answers": len(set(answers))}


def _draw(path: Path, dataset: Dataset, asked: Asked, drawn: dict[str, list[Any]]) -> None:
    """A row for each digit: the mel spectrogram of one recording's units, and the image that each way makes of it."""
    from matplotlib.figure import Figure

    units: Any = dataset.tokenizer("speech")
    pixels: Any = dataset.tokenizer("image")
    shown = [word for word in DIGITS if word in asked.words]
    figure = Figure(figsize=(1.1 * (1 + len(drawn)), 1.0 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), 1 + len(drawn), squeeze=False)
    for row, word in zip(grid, shown, strict=True):
        index = asked.words.index(word)
        mel = units.decode_mel(asked.prompts[index][0].tokens)
        row[0].imshow(mel.T, origin="lower", aspect="auto", cmap="magma")
        row[0].set_ylabel(word, rotation=0, ha="right", va="center")
        for axes, (way, answers) in zip(row[1:], drawn.items(), strict=True):
            axes.imshow(pixels.decode(answers[index]), cmap="gray_r", vmin=0, vmax=pixels.levels - 1)
            if word == shown[0]:
                axes.set_title(way, fontsize=9)
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
