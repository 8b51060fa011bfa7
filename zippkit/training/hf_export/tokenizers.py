"""Writes what turns text and sound into ids beside an exported model, in forms that need no zippkit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from zippkit.checkpoint.references import copy_companions
from zippkit.composition import Composition
from zippkit.data.audio import MEL_FLOOR, mel_filters
from zippkit.data.dataset import Tokenizer
from zippkit.data.text import ByteTokenizer, FileTokenizer
from zippkit.data.units import LEAST_STD, UnitTokenizer
from zippkit.system.files import write_json
from zippkit.training.run_folder import RunFolder

TOKENIZERS = "tokenizers"


def write_tokenizers(zipped: Composition, run: Path, folder: Path) -> dict[str, str]:
    """Write the tokenizer of each modality that has one, in ``tokenizers/<modality>/``.

    The only text tokenizer stands beside ``config.json`` too, where ``AutoTokenizer`` looks.

    Returns:
        By modality what was written: ``text``, ``bytes``, ``units``, or why nothing was.
    """
    found: dict[str, str] = {}
    for name, modality in zipped.graph.modalities.items():
        own = RunFolder(run).tokenizer(name)
        source = zipped.sources.get(modality.tower)
        if own is not None:
            found[name] = _write(own, folder / TOKENIZERS / name)
        elif source is not None and modality.first_id == 0 and not modality.continuous:
            (folder / TOKENIZERS / name).mkdir(parents=True)
            copy_companions(source, folder / TOKENIZERS / name)
            if (folder / TOKENIZERS / name / "tokenizer.json").is_file():
                found[name] = "text"
    texts = [name for name, kind in found.items() if kind == "text"]
    if len(texts) == 1:
        for file in (folder / TOKENIZERS / texts[0]).iterdir():
            shutil.copyfile(file, folder / file.name)
    return found


def write_text_tokenizer(tokenizer: FileTokenizer, folder: Path) -> None:
    """Write the two files that ``transformers.AutoTokenizer`` reads."""
    tokenizer.save(folder / "tokenizer.json")
    begin, end = (tokenizer.tokenizer.id_to_token(each) for each in (tokenizer.begin, tokenizer.end))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": end}
    write_json(folder / "tokenizer_config.json", told)


def _write(tokenizer: Tokenizer, folder: Path) -> str:
    if isinstance(tokenizer, FileTokenizer):
        folder.mkdir(parents=True)
        write_text_tokenizer(tokenizer, folder)
        return "text"
    if isinstance(tokenizer, UnitTokenizer):
        folder.mkdir(parents=True)
        _write_units(tokenizer, folder)
        return "units"
    if isinstance(tokenizer, ByteTokenizer):
        return "bytes"
    return f"its ids are made by a {type(tokenizer).__name__}, which only zippkit runs"


def _write_units(tokenizer: UnitTokenizer, folder: Path) -> None:
    config = tokenizer.config
    filters = mel_filters(config.sample_rate, config.n_fft, config.n_mels)
    tensors = {"codebook": tokenizer.codebook, "mean": tokenizer.mean, "std": tokenizer.std, "filters": filters}
    save_file({name: np.ascontiguousarray(each) for name, each in tensors.items()}, folder / "units.safetensors")
    same = config.model_dump(include={"sample_rate", "n_mels", "n_fft", "window", "stride", "normalize"})
    write_json(folder / "units.json", {**same, "hop": config.hop_samples, "floor": MEL_FLOOR, "least_std": LEAST_STD})
