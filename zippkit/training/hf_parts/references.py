"""Weights of frozen towers that stand elsewhere, known by their hashes, and the dtypes in which towers compute."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM


def fill_tower(tower: nn.Module, settings: dict[str, Any]) -> None:
    """Fill in a tower's weights, if they stand elsewhere, and give it its own dtype; its adapters stay as they are."""
    adapters = {name for name, _ in tower.named_parameters() if name.endswith((".down", ".up"))}
    dtype = getattr(torch, settings["dtype"])
    for name, parameter in tower.named_parameters():
        if name not in adapters:
            parameter.data = parameter.data.to(dtype)
    if settings["reference"] is None:
        return
    found = tensors_at(settings["reference"])
    own = {name: each for name, each in tower.state_dict().items() if name not in adapters}
    missing = sorted(own.keys() - found.keys())
    if missing:
        raise ValueError(f"{settings['reference']['path']}: lacks {len(missing)} tensors, such as {missing[0]}")
    for name, tensor in own.items():
        tensor.copy_(found[name])


def tensors_at(reference: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a tower that stands elsewhere, by their names in this model.

    Raises:
        ValueError: other weights are there than those that this model was made with.
    """
    path = Path(reference["path"])
    if not path.exists():
        from huggingface_hub import snapshot_download

        files = [*reference["files"], "*.json"]
        path = Path(snapshot_download(reference["path"], revision=reference["revision"], allow_patterns=files))
    weights = [path] if path.is_file() else [path / name for name in reference["files"]]
    for file, expected in zip(weights, reference["files"].values(), strict=True):
        with file.open("rb") as opened:
            seen = hashlib.file_digest(opened, "sha256").hexdigest()
        if seen != expected:
            raise ValueError(f"{file}: other weights (SHA-256 {seen}) than this model was made with ({expected})")
    if reference["read_by"] == "safetensors":
        found = {name: each for file in weights for name, each in load_file(file).items()}
        return {name.removeprefix("model."): tensor for name, tensor in found.items()}
    if reference["read_by"] == "causal_lm":
        return dict(AutoModelForCausalLM.from_pretrained(path, dtype="auto").state_dict())
    whole: Any = AutoModel.from_pretrained(path, dtype="auto")
    encoder = whole.get_encoder() if getattr(whole.config, "is_encoder_decoder", False) else whole
    encoder = getattr(encoder, "vision_model", encoder)
    return {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
