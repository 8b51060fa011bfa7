"""Whether the towers of a spec can read what a dataset holds: vocabularies, frames, sample rates, sizes, ranges."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from zippkit.data.dataset import Dataset
from zippkit.data.manifest import Column
from zippkit.errors import DataError, did_you_mean
from zippkit.plan.sequence_layout import Modality
from zippkit.spec.kinds import Frames, Image
from zippkit.spec.task import Task


def check_tokenizers(
    dataset: Dataset,
    wanted: Mapping[str, Modality],
    fingerprints: Mapping[str, str | None] | None = None,
    tasks: Iterable[Task] | None = None,
) -> None:
    """Refuse data that are not what the towers read.

    Args:
        dataset: where the tokens, waveforms and images come from.
        wanted: what the towers read, by name.
        fingerprints: of the tokenizers that a model was trained with, by modality.
        tasks: those that are run: a modality that none of them has need not be there; all are needed if left out.

    Raises:
        DataError: every modality that is missing, whose vocabulary, frame or sample rate differs, that is to be fed as
            tokens to a tower of waveforms or the other way round, or whose tokens another tokenizer made.
    """
    modalities = dataset.manifest.modalities
    needed = wanted.keys() if tasks is None else {name for task in tasks for name in task.modalities}
    wrong: list[str] = []
    for name, modality in wanted.items():
        if name in modalities:
            found = modalities[name]
            wrong += (_wrong_feed if modality.continuous else _wrong_ids)(dataset, name, found, modality)
            if fingerprints and fingerprints.get(name) != found.fingerprint and (tasks is None or name in fingerprints):
                wrong.append(
                    f"its {name} tokens were made by another tokenizer ({_short(found.fingerprint)}) than the model "
                    f"was trained with ({_short(fingerprints.get(name))}); prepare the data with the run's own"
                )
        elif name in needed:
            wrong.append(f"no modality is called {name!r}{did_you_mean(name, modalities)}")
    if wrong:
        raise DataError("\n".join(f"{dataset.path}: {each}" for each in wrong))


def check_agreement(datasets: Mapping[str, Dataset], modalities: Iterable[str]) -> None:
    """Refuse datasets whose tokens, waveforms or images of one modality do not mean the same.

    Args:
        datasets: by their names in the recipe.
        modalities: those that the composition reads.

    Raises:
        DataError: every modality that two datasets hold differently.
    """
    wrong: list[str] = []
    for name in modalities:
        held = [(key, each.manifest.modalities[name]) for key, each in datasets.items() if name in each.modalities]
        for key, column in held[1:]:
            first, known = held[0]
            if _meaning(column) != _meaning(known):
                here, there = (f"{datasets[k].path}: {name} holds {_described(c)}" for k, c in ((key, column), held[0]))
                wrong.append(f"{here}, but {there} (data.{first}); prepare both with the same tokenizer")
    if wrong:
        raise DataError("\n".join(wrong))


def _meaning(column: Column) -> tuple[object, ...]:
    return column.kind, column.fingerprint, column.sample_rate, column.shape, column.begin, column.end


def _described(column: Column) -> str:
    rate = f" at {column.sample_rate} Hz" if column.sample_rate else ""
    return (
        f"{column.told}{rate} of tokenizer {_short(column.fingerprint)}" if column.fingerprint else column.told + rate
    )


def _wrong_ids(dataset: Dataset, name: str, found: Column, modality: Modality) -> Iterator[str]:
    """Why a tower of token ids cannot read a modality; nothing if it can."""
    del dataset
    if found.kind == "features":
        yield (
            f"{name} holds frames of floats, but tower {modality.tower!r} reads token ids; expected a dataset prepared "
            f"with --tokenizer {name}=frame_units, or a tower that is fed frames"
        )
        return
    if found.vocab_size is None:
        yield (
            f"{name} holds waveforms, but tower {modality.tower!r} reads token ids; expected a tower of waveforms "
            "(such as kind: hf_encoder), or a dataset of units (prepared without --waveform)"
        )
        return
    if modality.vocab_size is not None and found.vocab_size > modality.vocab_size:
        hosted = f"towers.{modality.tower}.extend_vocabulary.{name}"
        key = f"towers.{name}.config.vocab_size" if name == modality.tower else hosted
        yield (
            f"{name} has {found.vocab_size} token ids, the tower {modality.vocab_size}; expected "
            f"{key}: {found.vocab_size}"
        )
    frame = (modality.frame.begin, modality.frame.end) if modality.frame else None
    if found.begin is not None and frame != (found.begin, found.end):
        yield (
            f"{name} begins with {found.begin} and ends with {found.end}, the tower's frame is "
            f"{frame}; expected towers.{name}.frame: {{begin: {found.begin}, end: {found.end}}}"
        )


def _wrong_feed(dataset: Dataset, name: str, found: Column, modality: Modality) -> Iterator[str]:
    """Why a continuous tower cannot be fed with a modality; nothing if it can."""
    feed = modality.feed
    if isinstance(feed, Image):
        if found.kind != "pixels":
            yield f"{name} holds {found.told}, but tower {name!r} is fed images; expected a modality of pixels"
        elif not (tokenizer := dataset.pixel_tokenizer(name)).fits(feed):
            side = tokenizer.side
            yield (
                f"{name} holds images of {side} x {side} pixels, and tower {name!r} is fed {feed.height} x "
                f"{feed.width}; expected a multiple of {side}, as each pixel is drawn as a block"
            )
    elif isinstance(feed, Frames):
        yield from _wrong_frames(name, found, feed)
    elif feed is None and found.kind == "features":
        return  # The tower does not tell what it takes.
    elif found.kind != "waveform":
        rate = feed.sample_rate if feed else "RATE"
        yield (
            f"{name} holds {found.told}, but tower {name!r} is fed waveforms; expected a dataset prepared with "
            f"--waveform {rate}, or a tower of token ids (such as kind: decoder)"
        )
    elif feed is not None and found.sample_rate != feed.sample_rate:
        yield (
            f"{name} holds {found.sample_rate} samples a second, tower {name!r} hears {feed.sample_rate}; expected "
            f"a dataset prepared with --waveform {feed.sample_rate} --resample (or, if the tower is not pre-trained, "
            f"towers.{name}.config.sample_rate: {found.sample_rate})"
        )


def _wrong_frames(name: str, found: Column, feed: Frames) -> Iterator[str]:
    if found.kind != "features":
        yield (
            f"{name} holds {found.told}, but tower {name!r} is fed frames of floats of shape {feed.shape}; expected a "
            f"dataset prepared with --tokenizer {name}=none"
        )
        return
    shape = tuple(found.shape or ())
    if shape != feed.shape:
        yield f"{name} holds frames of shape {shape}, and tower {name!r} is fed {feed.shape}"
    least, most = (-math.inf if feed.least is None else feed.least), (math.inf if feed.most is None else feed.most)
    if found.least is not None and found.most is not None and not least <= found.least <= found.most <= most:
        yield (
            f"{name} holds values from {found.least:g} to {found.most:g}, and tower {name!r} takes {least:g} to "
            f"{most:g}; scale them before they are prepared"
        )


def _short(fingerprint: str | None) -> str:
    return fingerprint[:12] if fingerprint else "none"
