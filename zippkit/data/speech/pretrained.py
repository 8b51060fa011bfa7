"""Speech models of transformers that tokenizers build on: referenced by path and hash, read from safetensors only."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from zippkit.errors import DataError, did_you_mean
from zippkit.spec.hf_folder import WEIGHTS, local_folder
from zippkit.spec.kinds import read_json
from zippkit.system.progress import without_bars_of_transformers

_HASHED = ("config.json", "preprocessor_config.json", "*.safetensors")
"""Everything that decides the ids that a model makes."""


def model_folder(path: str, classes: dict[str, str], what: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a model, and its ``config.json``.

    Args:
        path: a local folder or hub id.
        classes: the model types that can be used, to their classes.
        what: the kind of tokenizer that asks.

    Raises:
        DataError: it is not there, or a model of another type.
    """
    try:
        folder = local_folder(path, WEIGHTS)
        config = read_json(folder / "config.json")
    except ValueError as error:
        raise DataError(f"{what}: model: {error}") from None
    model_type = config.get("model_type")
    if model_type not in classes:
        raise DataError(f"{what}: {folder} holds a model of type {model_type!r}{did_you_mean(model_type, classes)}")
    if not any(folder.glob("*.safetensors")):
        raise DataError(f"{what}: {folder} holds no *.safetensors; other formats are not read")
    return folder, config


def model_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of what decides a model's outputs."""
    digest = hashlib.sha256()
    for file in sorted(file for pattern in _HASHED for file in folder.glob(pattern)):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def load_model(path: str, classes: dict[str, str], what: str, expected_hash: str) -> tuple[Any, Path]:
    """The model, float32 and in evaluation mode, and its folder.

    Raises:
        DataError: transformers is not installed, or the model is not the one that the hash is of.
    """
    folder, config = model_folder(path, classes, what)
    found = model_hash(folder)
    if found != expected_hash:
        raise DataError(f"{what}: the model in {folder} has SHA-256 {found}, expected {expected_hash}: another model")
    try:
        import torch
        import transformers
    except ImportError as error:
        raise DataError(f"{what} needs transformers: pip install 'zippkit[hf]' ({error})") from None
    # A model for recognition brings a head that is not used, which transformers would report at length.
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with without_bars_of_transformers():
            model = getattr(transformers, classes[config["model_type"]]).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{what}: the model in {folder} cannot be loaded ({' '.join(str(error).split())})") from None
    finally:
        logger.setLevel(level)
    return model.eval().requires_grad_(False), folder
