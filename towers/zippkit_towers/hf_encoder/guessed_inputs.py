"""Inputs for a guessed encoder's own forward: examples that it is tried with, and a batch's segments as its rows."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zippkit.batch.batch import TowerBatch
from zippkit.spec.kinds import Frame
from zippkit_towers.hf_encoder.config import HfEncoderConfig

MAIN_INPUT = {"text": "input_ids", "image": "pixel_values", "sound": "input_values"}
"""The name of the argument of transformers' forward, by what a segment is."""


def example(config: HfEncoderConfig, size: int) -> Any:
    """A segment of random inputs of about ``size`` states; token ids have begin and end around them."""
    if config.feed_kind != "text":
        return config.example_inputs(size, seed=size)
    frame = config.frame or Frame(begin=0, end=0)
    n, taken = config.vocab_size or 1, {frame.begin, frame.end, config.padding}
    ids = [i for i in np.random.default_rng(size).integers(n, size=4 * size).tolist() if i not in taken][:size]
    return np.array([min(frame.begin, n - 1), *ids, min(frame.end, n - 1)], dtype=np.int64)


def batched(config: HfEncoderConfig, segments: Sequence[Any], device: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Arguments of the model's own forward for segments of one length."""
    name = MAIN_INPUT[config.feed_kind]
    if config.feed_kind == "sound":
        extractor: Any = import_module("transformers").Wav2Vec2FeatureExtractor
        extract = extractor(do_normalize=config.normalize, sampling_rate=config.sample_rate)
        segments = [extract(values, sampling_rate=config.sample_rate)["input_values"][0] for values in segments]
    stacked = torch.from_numpy(np.stack(segments)).to(device)
    return {name: stacked if config.feed_kind == "text" else stacked.to(dtype)}


def entries(inputs: TowerBatch) -> tuple[Tensor, Tensor]:
    """For each state its segment in the batch, (B, T), and its index in that segment, (B, T)."""
    if inputs.features is not None:
        return inputs.features.entry, inputs.offset
    real = inputs.order >= 0
    before = torch.nn.functional.pad(inputs.segment[:, :-1], (1, 0), value=-1)
    begins = real & (inputs.segment != before)
    entry = (begins.flatten().cumsum(0) - 1).clamp(min=0).view_as(inputs.segment)
    place = torch.arange(real.shape[1], device=real.device).expand_as(entry)
    return entry, place - torch.where(begins, place, 0).cummax(dim=1).values


def rows_of(inputs: TowerBatch, entry: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (N, L) of each segment's states among the batch's B * T, 0 at padding; and their number (N,)."""
    real, (n_rows, n_columns) = inputs.order >= 0, inputs.order.shape
    if inputs.features is not None:
        n = len(inputs.features.values)
    else:
        n = n_rows * inputs.n_segments if real.is_meta else int(entry[real].max()) + 1
    longest = n_columns if real.is_meta else int(column[real].max()) + 1
    at = torch.where(real, column, longest)
    places = torch.arange(n_rows * n_columns, device=real.device).view(n_rows, n_columns)
    rows = torch.zeros(n, longest + 1, dtype=torch.long, device=real.device)
    rows = rows.index_put((entry, at), torch.where(real, places, 0))[:, :longest]
    lengths = torch.zeros(n, dtype=torch.long, device=real.device)
    return rows, lengths.index_put((entry,), real.long(), accumulate=True)


def given(
    config: HfEncoderConfig, inputs: TowerBatch, rows: Tensor, lengths: Tensor, which: Tensor, n: int, like: Tensor
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Arguments of the model's forward for the segments ``which``; and (n, L) bool, False at padding, if any."""
    name = MAIN_INPUT[config.feed_kind]
    if inputs.features is not None:
        values = inputs.features.values[which]
        if config.feed_kind == "sound":
            values = values[:, : values.shape[1] if values.is_meta else int(inputs.features.lengths[which].max())]
            values = _normalized(values) if config.normalize else values
        return {name: values.to(like.dtype)}, None
    rows, lengths = rows[which][:, :n], lengths[which]
    real = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
    ids = torch.where(real, inputs.tokens.flatten()[rows], config.padding)
    if rows.is_meta or bool(real.all()):
        return {name: ids}, None
    return {name: ids, "attention_mask": real.long()}, real


def _normalized(values: Tensor) -> Tensor:
    variance, mean = torch.var_mean(values, dim=1, keepdim=True, correction=0)
    return (values - mean) / (variance + 1e-7).sqrt()
