"""Compares an encoder's states, computed layer by layer, with transformers' own forward, where it is known by hand."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zippkit.batch.batch import Segment
from zippkit.batch.collate import collate
from zippkit.errors import CheckpointError
from zippkit.model.run_tower import tower_states
from zippkit.model.tower import Tower
from zippkit_towers.hf_encoder.config import HfEncoderConfig
from zippkit_towers.hf_encoder.families import SAMPLE_RATE
from zippkit_towers.hf_encoder.guessed_shape import one_line
from zippkit_towers.hf_encoder.inputs import Window
from zippkit_towers.hf_encoder.parts import parts_of
from zippkit_towers.hf_encoder.transformers_model import whole_encoder

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Largest difference, relative to the largest state, by the dtype in which both are run."""


def config_of(tower: Tower) -> HfEncoderConfig:
    """The config of a tower of this kind."""
    return cast("HfEncoderConfig", tower.config)


def gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest of ``expected``; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


@torch.no_grad()
def check_parity(tower: Tower, source: str) -> None:
    """Compare two segments of different lengths, packed into one row, with each alone in transformers' own forward.

    Raises:
        CheckpointError: they differ, or transformers cannot run them.
    """
    config, training = config_of(tower), tower.training
    examples = [config.example_inputs(size, seed=size) for size in (7, 4)]
    what = f"{source}: a {config.model_type!r} model"
    try:
        tower.eval()
        expected = torch.cat([own_forward(tower, example) for example in examples])
        batch = collate([[Segment("it", example) for example in examples]], {"it": config})
        found = tower_states(tower, batch.to(expected.device).towers["it"])[0]
    except Exception as error:
        # Transformers' own code runs here.
        raise CheckpointError(f"{what} cannot be run layer by layer: {one_line(error)}") from error
    finally:
        tower.train(training)
    apart = float((found - expected).abs().max())
    # Written so that NaN is refused.
    if not apart <= TOLERANCE[tower.dtype] * max(1.0, float(expected.abs().max())):
        raise CheckpointError(
            f"{what}, run layer by layer, differs by {apart:.2g} from transformers' own forward; "
            "it would run wrong, so it is not run"
        )


def own_forward(tower: Tower, values: NDArray[np.float32]) -> Tensor:
    """``last_hidden_state`` (L, D) of one segment, by transformers' own extraction and forward on these weights."""
    config = config_of(tower)
    with torch.device("meta"):
        whole: Any = whole_encoder(config)
    for name, module in tower.named_children():
        setattr(whole, name, module)
    parts = parts_of(config)
    for name in parts.unused:
        setattr(whole, name, nn.Identity())
    first = next(tower.parameters())
    inputs = {parts.main_input: extracted(config, values).to(first)}
    states: Tensor = whole.eval()(**inputs).last_hidden_state[0]
    return states


def extracted(config: HfEncoderConfig, values: NDArray[np.float32]) -> Tensor:
    """Outputs of the model's own feature extractor for one segment, with a batch dimension; pixels are left as is."""
    transformers: Any = import_module("transformers")
    found: Tensor
    if isinstance(config.inputs, Window):
        n_mels = config.model.get("num_mel_bins", config.family.defaults["num_mel_bins"])
        extract = transformers.WhisperFeatureExtractor(feature_size=n_mels)
        n_samples = config.inputs.n_samples
        found = extract(values, sampling_rate=SAMPLE_RATE, max_length=n_samples, return_tensors="pt").input_features
    elif config.feed_kind == "sound":
        extract = transformers.Wav2Vec2FeatureExtractor(do_normalize=config.normalize, sampling_rate=config.sample_rate)
        found = extract(values, sampling_rate=config.sample_rate, return_tensors="pt").input_values
    else:
        found = torch.from_numpy(values)[None]
    return found
