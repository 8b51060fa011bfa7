"""Sound, text and ids in, sound, text and images out: what ``zippkit generate`` does with a finished run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zippkit.batch.batch import Segment
from zippkit.composition import Composition, load
from zippkit.data.audio import read_audio, resample, write_audio
from zippkit.data.dataset import Tokenizer
from zippkit.data.frame_tokenizer import FrameTokenizer
from zippkit.data.pixel_tokenizer import PixelTokenizer
from zippkit.data.speech_tokenizer import SpeechTokenizer
from zippkit.data.text import ByteTokenizer, FileTokenizer
from zippkit.errors import SpecError, ZippkitError, did_you_mean
from zippkit.evaluation.recognisers.base import open_scorer
from zippkit.evaluation.speech_scores import Listener
from zippkit.generation.api import generate
from zippkit.generation.sampling import GREEDY
from zippkit.spec.sampling import Sampling
from zippkit.spec.validation import validate
from zippkit.spec.yaml_document import Document, override
from zippkit.system.files import parse_json
from zippkit.training.run_folder import RunFolder

SOUND = (".wav", ".flac")


@dataclass(frozen=True)
class Given:
    """A segment of a prompt as the user writes it."""

    value: Path | str | Sequence[int]
    """A sound file, text, or ids."""
    modality: str | None = None
    """The first that takes such a thing if left out."""
    where: str = "generate"
    """For messages."""


def answer(
    path: Path,
    prompt: Sequence[Given],
    outputs: Sequence[str] | None = None,
    out: Path | None = None,
    max_tokens: int = 256,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    scorer: str | None = None,
    multimodal: bool = True,
    compile: bool = False,
) -> Iterator[str]:
    """Continue a prompt, a line for each new segment; sound is written to ``out``, images are drawn.

    Args:
        path: run folder.
        prompt: its segments.
        outputs: modalities to generate, in order; the one that reads the prompt's last if left out.
        out: where to write sound; where several segments are sound, their number is added to the name.
        max_tokens: longest segment.
        sampling: how tokens are chosen.
        seed: of what is drawn.
        scorer: recogniser that writes down what it hears in generated sound.
        multimodal: whether the row passes the input projections; False where a tower continues its own modality by
            itself.
        compile: whether steps are compiled.

    Raises:
        ZippkitError: a prompt or file that cannot be used, no tower that could answer.
    """
    for given in prompt:
        if isinstance(given.value, Path) and not given.value.is_file():
            raise ZippkitError(f"{given.value}: {'a folder, not a file' if given.value.is_dir() else 'no such file'}")
    zipped = load(path)
    run = RunFolder(path)
    heard = _Heard(zipped, run.tokenizers(), run.sample_rates())
    segments = [heard.segment(given) for given in prompt]
    wanted = list(outputs or _answering(zipped, segments[-1].tower if segments else None))
    sounds = [name for name in wanted if isinstance(heard.tokenizers.get(name), SpeechTokenizer)]
    _check_out(out, scorer, wanted, sounds)
    n_sounds = len(sounds)
    ear = open_scorer(scorer, {}) if scorer is not None else None
    n_written = 0
    for segment in generate(zipped, segments, wanted, max_tokens, sampling, seed, multimodal, compile=compile):
        tokenizer = heard.tokenizers.get(segment.tower)
        if tokenizer is None:
            yield f"{segment.tower}: {' '.join(map(str, segment.tokens))}"
        elif isinstance(tokenizer, PixelTokenizer):
            yield f"{segment.tower}:\n{tokenizer.drawn(segment.tokens)}"
        elif isinstance(tokenizer, SpeechTokenizer) and out is not None:
            n_written += 1
            file = out if n_sounds == 1 else out.with_stem(f"{out.stem}-{n_written}")
            if ear is not None:
                wave, words = Listener(ear, tokenizer)(segment.tokens)
            else:
                wave, words = tokenizer.to_sound(segment.tokens), ""
            write_audio(file, wave, tokenizer.sample_rate)
            heard_as = f", in which {scorer} hears: {words or 'nothing'}" if ear is not None else ""
            yield f"{segment.tower}: {len(segment.tokens)} units in {file}{heard_as}"
        elif isinstance(tokenizer, ByteTokenizer | FileTokenizer):
            yield f"{segment.tower}: {tokenizer.decode(segment.tokens)}"
        elif isinstance(tokenizer, FrameTokenizer):
            frames = tokenizer.decode(segment.tokens)
            yield f"{segment.tower}: {len(segment.tokens)} units, {len(frames)} frames of shape {frames.shape[1:]}"


def read_sampling(settings: Sequence[str]) -> Sampling:
    """``temperature=0.8``, ``beams=4`` and the like.

    Raises:
        SpecError: every setting that does not fit.
    """
    document = Document("generate", {})
    override(document, settings)
    sampling, complaints = validate(Sampling, document.data)
    if sampling is None:
        raise SpecError([document.problem(place, message) for place, message in complaints])
    return sampling


def read_prompt(file: Path) -> list[Given]:
    """Read a prompt from JSON: each segment maps a modality to text, ids, or a sound file beside the prompt's.

    Example: ``[{"speech": "in.wav"}, {"text": "two seven"}, {"image": [0, 3, 16]}]``.

    Raises:
        ZippkitError: not readable, or something else; tells the segment.
    """
    try:
        items = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ZippkitError(f"{file}: not a readable prompt ({error})") from None
    expected = 'expected a list such as [{"speech": "in.wav"}, {"text": "two seven"}]'
    if not isinstance(items, list) or not items:
        raise ZippkitError(f"{file}: {expected}")
    return [_given(file, i, item, expected) for i, item in enumerate(items)]


def _given(file: Path, i: int, item: Any, expected: str) -> Given:
    where = f"{file}: segment {i}"
    if not isinstance(item, dict) or len(item) != 1:
        raise ZippkitError(f"{where}: got {json.dumps(item)}; {expected}")
    ((modality, value),) = item.items()
    if isinstance(value, list) and all(type(token) is int for token in value):
        return Given(value, modality, where)
    if not isinstance(value, str):
        raise ZippkitError(
            f"{where}: {modality}: expected text, a sound file or a list of ids, got {json.dumps(value)}"
        )
    # A text may end like a file's name, and a file's name may be missing: what is there decides.
    sound = Path(value).suffix.lower() in SOUND and (len(value.split()) == 1 or (file.parent / value).is_file())
    return Given(file.parent / value if sound else value, modality, where)


class _Heard:
    """Converts the sound and text of a prompt to segments of a run's towers."""

    def __init__(self, zipped: Composition, tokenizers: Mapping[str, Tokenizer], rates: Mapping[str, int]) -> None:
        self.modalities = zipped.graph.modalities
        self.tokenizers = {name: tokenizers[name] for name in self.modalities if name in tokenizers}
        self.rates = {name: rates[name] for name in self.modalities if name in rates}

    def segment(self, given: Given) -> Segment:
        name, value = given.modality, given.value
        if name is not None and name not in self.modalities:
            raise ZippkitError(f"{given.where}: no tower is called {name!r}{did_you_mean(name, self.modalities)}")
        if isinstance(value, Path):
            return self._sound(given, value)
        if isinstance(value, str):
            return self._text(given, value)
        assert name is not None, "ids come with their modality"
        return Segment(name, list(value))

    def _sound(self, given: Given, file: Path) -> Segment:
        """Sound as a tower of waveforms takes it, or one of units."""
        for name, rate in self.rates.items():
            if given.modality in (None, name):
                return Segment(name, resample(*read_audio(file), rate))
        for name, tokenizer in self.tokenizers.items():
            if given.modality in (None, name) and isinstance(tokenizer, SpeechTokenizer):
                wave = resample(*read_audio(file), tokenizer.sample_rate)
                return Segment(name, tokenizer.encode(wave, tokenizer.sample_rate))
        listener = f"{given.modality!r} does not listen" if given.modality else "none of the run's towers listens"
        raise ZippkitError(f"{given.where}: {listener} to sound")

    def _text(self, given: Given, text: str) -> Segment:
        if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
            raise ZippkitError(f"{given.where}: {text!r} is not Unicode text")
        for name, tokenizer in self.tokenizers.items():
            if given.modality in (None, name) and isinstance(tokenizer, ByteTokenizer | FileTokenizer):
                _tell_unknown(given, name, tokenizer.unknown(text), text)
                return Segment(name, tokenizer.encode(text))
        reader = f"{given.modality!r} does not read" if given.modality else "none of the run's towers reads"
        raise ZippkitError(f"{given.where}: {reader} text")


def _tell_unknown(given: Given, name: str, unknown: Sequence[str], text: str) -> None:
    """Warn of words that a text's tokenizer does not know; where it knows none, nothing of the text would be read."""
    if not unknown:
        return
    words = ", ".join(map(repr, unknown))
    if len(unknown) == len(set(text.split())):
        raise ZippkitError(f"{given.where}: none of the words is in the vocabulary of {name!r}: {words}")
    print(f"{given.where}: not in the vocabulary of {name!r}, and read as unknown: {words}", file=sys.stderr)


def _check_out(out: Path | None, scorer: str | None, wanted: Sequence[str], sounds: Sequence[str]) -> None:
    """Whether the sound that ``sounds`` generate can be written, before anything is computed."""
    if not sounds:
        if out is not None or scorer is not None:
            given = "--out" if out is not None else "--scorer"
            raise ZippkitError(f"{given}: no sound is generated, only {', '.join(wanted)}; remove it, or name --to")
        return
    if out is None:
        raise ZippkitError(f"{sounds[0]} is sound; say where to write it with --out FILE.wav")
    if out.suffix.lower() not in SOUND or not out.parent.is_dir() or out.is_dir():
        raise ZippkitError(f"--out {out}: expected a .wav or .flac file in a folder that is there")


def _answering(zipped: Composition, source: str | None) -> list[str]:
    """The first tower that reads the prompt's."""
    tower = zipped.graph.modalities[source].tower if source is not None else None
    readers = [site.target for site in zipped.graph.sites if site.source == tower]
    if not readers:
        raise ZippkitError(f"no link reads {source!r}, so nothing can answer it; name towers with --to")
    return readers[:1]
