"""``zippkit prepare``: words of the command line to a call of `prepare` or `prepare_pictures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from zippkit.data.dataset import Dataset
from zippkit.data.image_corpora import prepare_pictures
from zippkit.data.prepare import prepare
from zippkit.data.readers.base import reader_class
from zippkit.data.speech_tokenizer import tokenizer_class
from zippkit.data.units import UnitTokenizer
from zippkit.errors import DataError, ZippkitError
from zippkit.spec.kinds import Strict
from zippkit.spec.validation import validate
from zippkit.system.progress import progress


def run_prepare(
    corpus: str, root: Path | None, out: Path, options: Sequence[str], units: Path | None, flags: Mapping[str, Any]
) -> str:
    """Prepare a dataset; returns what to print.

    Raises:
        ZippkitError: options that no reader or unit config knows, and all that `prepare` raises.
    """
    if not reader_class(corpus).needs_root:
        return _told(_pictures(corpus, root, out, options, units, flags))
    if root is None:
        raise DataError(f"corpus kind {corpus} needs its folder, as in `prepare {corpus} path/to/it -o {out}`")
    reading, unit_settings = _split_options(options)
    kind = flags.get("tokenizer", UnitTokenizer.kind)
    if flags["waveform"] is not None and (units is not None or unit_settings or _about_units(flags)):
        named = ["--units"] * (units is not None) + [f"units.{key}" for key in unit_settings] + _about_units(flags)
        raise ZippkitError(f"--waveform writes sound as it is, and no units; remove {', '.join(named)}")
    if units is not None and unit_settings:
        raise ZippkitError(
            f"--units brings its own settings; remove {', '.join(f'units.{key}' for key in unit_settings)}"
        )
    # A trained tokenizer's settings are in its file.
    config, complaints = (units, []) if units is not None else validate(_settings(kind), unit_settings, ("units",))
    if config is None:
        raise ZippkitError("; ".join(f"{'.'.join(map(str, place))}: {message}" for place, message in complaints))
    with progress("prepare", 1) as advance:
        # The total changes from one stage to the next, so the bar shows the share of the stage that runs.
        dataset = prepare(
            corpus,
            root,
            out,
            units=None if flags["waveform"] is not None else config,
            options=reading,
            progress=lambda done, total, what: advance(0, f"{what} {done}/{total}" if total else f"{what} {done}"),
            **flags,
        )
    return _told(dataset)


def _settings(kind: str) -> type[Strict]:
    return tokenizer_class(kind).Config


def _about_units(flags: Mapping[str, Any]) -> list[str]:
    """The flags that speak of units, as they are typed."""
    another = flags.get("tokenizer", UnitTokenizer.kind) != UnitTokenizer.kind
    return ["--tokenizer"] * another + ["--vocoder"] * flags.get("vocoder", False)


def _pictures(
    corpus: str, root: Path | None, out: Path, options: Sequence[str], units: Path | None, flags: Mapping[str, Any]
) -> Dataset:
    """Prepare a corpus of images, which comes with a library and has no use for what is about sound."""
    unused = [f"{root}"] * (root is not None) + list(options) + ["--units"] * (units is not None)
    unused += [f"--{name.replace('_', '-')}" for name in ("waveform", "resample", "skip_bad") if flags[name]]
    unused += _about_units(flags)
    if unused:
        raise DataError(f"corpus kind {corpus} holds images and needs no folder; remove {', '.join(unused)}")
    return prepare_pictures(corpus, out, **{name: flags[name] for name in ("text", "limit", "seed", "overwrite")})


def _told(dataset: Dataset) -> str:
    out, n_skipped = dataset.path, len(dataset.manifest.skipped)
    sizes = ", ".join(f"{len(dataset.split(name))} {name}" for name in dataset.splits)
    return f"{out}: {sizes}" + (f"; {n_skipped} bad recordings left out, see {out}/manifest.json" if n_skipped else "")


def _split_options(options: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """``key=value`` for the reader, ``units.key=value`` for the units."""
    reading: dict[str, Any] = {}
    units: dict[str, Any] = {}
    for option in options:
        key, separator, value = option.partition("=")
        if not separator or not key:
            raise DataError(f"option {option!r}: expected key=value, as in max_digits=5")
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise DataError(f"option {option!r}: the value is not valid YAML") from error
        if key.startswith("units."):
            units[key.removeprefix("units.")] = parsed
        else:
            reading[key] = parsed
    return reading, units
