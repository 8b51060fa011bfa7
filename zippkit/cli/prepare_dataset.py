"""``zippkit prepare``: words of the command line to a call of `prepare`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from zippkit.data.dataset import Dataset
from zippkit.data.prepare import prepare
from zippkit.data.readers.base import reader_class
from zippkit.data.speech_tokenizer import tokenizer_class
from zippkit.data.units import UnitTokenizer
from zippkit.errors import DataError, ZippkitError
from zippkit.spec.validation import validate
from zippkit.system.progress import progress


def run_prepare(
    corpus: str, root: Path | None, out: Path, options: Sequence[str], units: Path | None, flags: Mapping[str, Any]
) -> str:
    """Prepare a dataset; returns what to print.

    Raises:
        ZippkitError: options that no reader or tokenizer knows, and all that `prepare` raises.
    """
    needs_root = reader_class(corpus).needs_root
    if root is None and needs_root:
        raise DataError(f"corpus kind {corpus} needs its folder, as in `prepare {corpus} path/to/it -o {out}`")
    if root is not None and not needs_root:
        raise DataError(f"corpus kind {corpus} comes with a library and needs no folder; remove {root}")
    kind, chosen = _kinds(flags.get("tokenizer") or ())
    reading, settings = _split_options(options, frozenset(reader_class(corpus).Config.model_fields))
    unit_settings = settings.pop("units", {})
    for name, own in settings.items():
        chosen[name] = {**chosen.get(name, {}), **own}
    if flags["waveform"] is not None:
        _refuse_units(units, unit_settings, kind, flags)
    if units is not None and unit_settings:
        raise ZippkitError(
            f"--units brings its own settings; remove {', '.join(f'units.{key}' for key in unit_settings)}"
        )
    rest = {name: value for name, value in flags.items() if name != "tokenizer"}
    with progress("prepare", 1) as advance:
        # The total changes from one stage to the next, so the bar shows the share of the stage that runs.
        dataset = prepare(
            corpus,
            root,
            out,
            # A trained tokenizer's settings are in its file.
            units=units if units is not None else _config(kind, unit_settings),
            tokenizer=kind,
            tokenizers=chosen,
            options=reading,
            progress=lambda done, total, what: advance(0, f"{what} {done}/{total}" if total else f"{what} {done}"),
            **rest,
        )
    return _told(dataset)


def _kinds(given: str | Sequence[str]) -> tuple[str, dict[str, dict[str, Any]]]:
    """The kind for sound, as in ``codec``, and those of single modalities, as in ``imu=frame_units``."""
    sound, named = UnitTokenizer.kind, {}
    for each in [given] if isinstance(given, str) else given:
        name, separator, kind = each.partition("=")
        if not separator:
            sound = each
        elif not name or not kind:
            raise DataError(f"--tokenizer {each!r}: expected a kind for sound, or NAME=KIND, as in imu=frame_units")
        else:
            named[name] = {"kind": kind}
    return sound, named


def _config(kind: str, settings: Mapping[str, Any]) -> Any:
    """The settings of units, if there are any."""
    if not settings:
        return None
    config, complaints = validate(tokenizer_class(kind).Config, dict(settings), ("units",))
    if config is None:
        raise ZippkitError("; ".join(f"{'.'.join(map(str, place))}: {message}" for place, message in complaints))
    return config


def _refuse_units(units: Path | None, settings: Mapping[str, Any], kind: str, flags: Mapping[str, Any]) -> None:
    named = ["--units"] * (units is not None) + [f"units.{key}" for key in settings]
    named += ["--tokenizer"] * (kind != UnitTokenizer.kind) + ["--vocoder"] * bool(flags.get("vocoder"))
    if named:
        raise ZippkitError(f"--waveform writes sound as it is, and no units; remove {', '.join(named)}")


def _told(dataset: Dataset) -> str:
    out, n_skipped = dataset.path, len(dataset.manifest.skipped)
    sizes = ", ".join(f"{len(dataset.split(name))} {name}" for name in dataset.splits)
    return f"{out}: {sizes}" + (f"; {n_skipped} bad recordings left out, see {out}/manifest.json" if n_skipped else "")


def _split_options(options: Sequence[str], known: frozenset[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """``key=value`` for the reader, and ``NAME.key=value`` for the tokenizer of a modality, or of ``units``."""
    reading: dict[str, Any] = {}
    settings: dict[str, dict[str, Any]] = defaultdict(dict)
    for option in options:
        key, separator, value = option.partition("=")
        if not separator or not key:
            raise DataError(f"option {option!r}: expected key=value, as in max_digits=5")
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise DataError(f"option {option!r}: the value is not valid YAML") from error
        name, dot, setting = key.partition(".")
        if dot and name not in known:
            settings[name][setting] = parsed
        else:
            reading[key] = parsed
    return reading, settings
