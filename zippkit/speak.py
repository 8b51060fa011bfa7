"""Sound or text in, sound or text out: what ``zippkit generate`` does with a finished run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from zippkit.batch import Segment
from zippkit.composition import Composition, load
from zippkit.data.audio import read_audio, resample, write_audio
from zippkit.data.dataset import Tokenizer
from zippkit.data.images import PixelTokenizer
from zippkit.data.text import ByteTokenizer, FileTokenizer
from zippkit.data.units import UnitTokenizer
from zippkit.errors import ZippkitError
from zippkit.generation import generate
from zippkit.run_folder import RunFolder


def answer(
    path: Path,
    audio: Path | None,
    text: str | None,
    outputs: Sequence[str] | None,
    out: Path | None,
    max_tokens: int,
) -> Iterator[str]:
    """Generate from sound or text, a line for each new segment; sound is written to ``out``, images are drawn.

    Raises:
        ZippkitError: not exactly one of sound and text, a file that cannot be used, no tower that could answer.
    """
    if (audio is None) == (text is None):
        raise ZippkitError("generate: expected either a sound file or --text")
    if audio is not None and not audio.is_file():
        raise ZippkitError(f"{audio}: no such file")
    zipped = load(path)
    run = RunFolder(path)
    known, rates = run.tokenizers(), run.sample_rates()
    tokenizers = {name: known[name] for name in zipped.graph.modalities if name in known}
    heard = {name: rates[name] for name in zipped.graph.modalities if name in rates}
    prompt = _hear(tokenizers, heard, audio) if audio is not None else _read(tokenizers, text or "")
    wanted = list(outputs or _answering(zipped, prompt.tower))
    _check_out(out, [name for name in wanted if isinstance(tokenizers.get(name), UnitTokenizer)])
    for segment in generate(zipped, [prompt], wanted, max_tokens):
        tokenizer = tokenizers.get(segment.tower)
        if tokenizer is None:
            yield f"{segment.tower}: {' '.join(map(str, segment.tokens))}"
        elif isinstance(tokenizer, PixelTokenizer):
            yield f"{segment.tower}:\n{tokenizer.drawn(segment.tokens)}"
        elif not isinstance(tokenizer, UnitTokenizer):
            yield f"{segment.tower}: {tokenizer.decode(segment.tokens)}"
        elif out is not None:
            write_audio(out, tokenizer.to_sound(segment.tokens), tokenizer.config.sample_rate)
            yield f"{segment.tower}: {len(segment.tokens)} units in {out}"


def _check_out(out: Path | None, sounds: Sequence[str]) -> None:
    """Whether the sound that ``sounds`` generate can be written, before anything is computed."""
    if not sounds:
        return
    if out is None:
        raise ZippkitError(f"{sounds[0]} is sound; say where to write it with --out FILE.wav")
    if out.suffix not in (".wav", ".flac") or not out.parent.is_dir() or out.is_dir():
        raise ZippkitError(f"--out {out}: expected a .wav or .flac file in a folder that is there")
    if len(sounds) > 1:
        raise ZippkitError(f"--to names {len(sounds)} segments of sound, and --out takes one")


def _hear(tokenizers: Mapping[str, Tokenizer], rates: Mapping[str, int], audio: Path) -> Segment:
    """The sound as the run's first listener takes it: a tower of waveforms at its ``rates``, or one of units."""
    for name, rate in rates.items():
        return Segment(name, resample(*read_audio(audio), rate))
    for name, tokenizer in tokenizers.items():
        if isinstance(tokenizer, UnitTokenizer):
            wave, rate = read_audio(audio)
            wanted = tokenizer.config.sample_rate
            return Segment(name, tokenizer.encode(resample(wave, rate, wanted), wanted))
    raise ZippkitError("none of the run's towers listens to sound")


def _read(tokenizers: Mapping[str, Tokenizer], text: str) -> Segment:
    for name, tokenizer in tokenizers.items():
        if isinstance(tokenizer, ByteTokenizer | FileTokenizer):
            return Segment(name, tokenizer.encode(text))
    raise ZippkitError("none of the run's towers reads text")


def _answering(zipped: Composition, source: str) -> list[str]:
    """The first tower that reads the prompt's."""
    readers = [site.target for site in zipped.graph.sites if site.source == source]
    if not readers:
        raise ZippkitError(f"no link reads {source!r}, so nothing can answer it; name towers with --to")
    return readers[:1]
