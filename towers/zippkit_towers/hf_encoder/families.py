"""The encoder families: which keys of a Hugging Face config.json tell their shape; without torch and transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from zippkit_towers.hf_encoder.guessed_shape import Feed, shape_of, vision_part
from zippkit_towers.hf_encoder.inputs import Inputs, Pixels, Waveform, Window

HOP, N_FFT, SAMPLE_RATE = 160, 400, 16_000
"""Whisper's log-mel spectrogram: samples from one frame to the next and in one, and in a second."""

Model = Mapping[str, Any]
"""A Hugging Face config as plain data."""


@dataclass(frozen=True)
class Family:
    """One ``model_type``."""

    inputs: Callable[[Model], Inputs] | None
    """None: token ids."""
    defaults: Model
    """Transformers' defaults of the keys that are needed here."""
    dim: str = "hidden_size"
    n_layers: str = "num_hidden_layers"
    feed: Feed = "sound"
    normalizes: bool = False
    """Whether its feature extractor may bring a waveform to zero mean and unit variance."""
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys of which only these values are run; the first is what transformers takes where it is left out."""
    extractor: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """The same, of the feature extractor's file."""
    known: bool = True
    """Whether its parts are known by hand; otherwise they are guessed, and taken only if exact."""


MAX_VALUES = 2**28
"""Of one image, and of the sound of one state: a gibibyte of floats."""


def number(model: Model, key: str) -> int:
    """A key's positive whole number.

    Raises:
        ValueError: it is something else.
    """
    value = model[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"model: {key} is {value!r}; expected a whole number above 0")
    return value


def _numbers(model: Model, key: str) -> tuple[int, ...]:
    values = model[key]
    if not isinstance(values, list | tuple) or not all(type(value) is int and value > 0 for value in values):
        raise ValueError(f"model: {key} is {values!r}; expected a list of whole numbers above 0")
    return tuple(values)


def _height_and_width(model: Model, key: str) -> tuple[int, int]:
    if type(model[key]) is int:
        return number(model, key), number(model, key)
    pair = _numbers(model, key)
    if len(pair) != 2:
        raise ValueError(f"model: {key} is {list(pair)}; expected one number, or height and width")
    return pair[0], pair[1]


def _window(model: Model) -> Window:
    return Window(number(model, "max_source_positions"), 2 * HOP)


def _waveform(model: Model) -> Waveform:
    sizes = {key: _numbers(model, key) for key in ("conv_kernel", "conv_stride", "conv_dim")}
    if len({len(values) for values in sizes.values()}) > 1:
        counts = ", ".join(f"{key} has {len(values)}" for key, values in sizes.items())
        raise ValueError(f"model: {counts} entries; expected one for each convolution")
    for key in ("conv_kernel", "conv_stride"):
        if math.prod(sizes[key]) > MAX_VALUES:
            raise ValueError(f"model: {key} {list(sizes[key])} makes one state of more than {MAX_VALUES} samples")
    return Waveform(sizes["conv_kernel"], sizes["conv_stride"])


def _pixels(model: Model) -> Pixels:
    size, patch = _height_and_width(model, "image_size"), _height_and_width(model, "patch_size")
    if size[0] < patch[0] or size[1] < patch[1]:
        raise ValueError(f"model: image_size {size} is smaller than patch_size {patch}")
    shape = (number(model, "num_channels"), *size)
    if math.prod(shape) > MAX_VALUES:
        raise ValueError(f"model: an image of {' x '.join(map(str, shape))} has more than {MAX_VALUES} values")
    return Pixels(shape, patch)


_SIZE = {"hidden_size": 768, "num_hidden_layers": 12}
_CONVOLUTIONS = {
    "conv_dim": [512] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
}
FAMILIES: dict[str, Family] = {
    "whisper": Family(
        _window,
        {"d_model": 384, "encoder_layers": 4, "max_source_positions": 1500, "num_mel_bins": 80},
        dim="d_model",
        n_layers="encoder_layers",
        extractor={
            "n_fft": (N_FFT,),
            "hop_length": (HOP,),
            "sampling_rate": (SAMPLE_RATE,),
            "do_normalize": (False, None),
            "dither": (0.0,),
        },
    ),
    # An adapter makes fewer states, and stands behind the layers.
    "wav2vec2": Family(_waveform, _SIZE | _CONVOLUTIONS, normalizes=True, only={"add_adapter": (False,)}),
    # A batch norm over positions lets the rows of a batch see each other while training.
    "hubert": Family(_waveform, _SIZE | _CONVOLUTIONS, normalizes=True, only={"conv_pos_batch_norm": (False,)}),
    "vit": Family(_pixels, _SIZE | {"image_size": 224, "patch_size": 16, "num_channels": 3}, feed="image"),
    "clip_vision_model": Family(
        _pixels, _SIZE | {"image_size": 224, "patch_size": 32, "num_channels": 3}, feed="image"
    ),
}

_UNUSED = frozenset(
    """_name_or_path architectures transformers_version torch_dtype dtype id2label label2id task_specific_params
    begin_suppress_tokens suppress_tokens forced_decoder_ids""".split()  # noqa: SIM905 (one line a word otherwise)
)
"""Keys that say nothing about an encoder."""


def family_of(model: Model) -> Family:
    """A model's family; one that nobody wrote down is described by its own config.

    Raises:
        ValueError: there is no such model, or it does not tell its shape.
    """
    if model["model_type"] in FAMILIES:
        return FAMILIES[model["model_type"]]
    shape = shape_of(model)
    feed: Feed = shape["feed"]
    inputs = {"sound": _waveform, "image": _pixels, "text": None}[feed]
    return Family(inputs, {**shape}, feed=feed, normalizes=feed == "sound", known=False)


def encoder_part(raw: Model, where: str) -> dict[str, Any]:
    """The part of a config.json that the encoder is built from, such as the vision tower of a model of images and text.

    Explicit nulls are kept: they say something else than transformers' defaults.

    Raises:
        ValueError: no model, or a setting that is not run.
    """
    model = dict(vision_part(raw) or raw)
    name = model.get("model_type")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where} holds a {name!r} model; expected the `model_type` of a Hugging Face config")
    if name in FAMILIES:
        check_values(model, FAMILIES[name].only, where)
    return {key: value for key, value in model.items() if key not in _UNUSED}


def check_values(model: Model, only: Mapping[str, tuple[Any, ...]], where: str) -> None:
    """Refuse settings that the tower would run wrong.

    Raises:
        ValueError: names the setting.
    """
    for key, values in only.items():
        if model.get(key, values[0]) not in values:
            raise ValueError(f"{where}: {key} is {model[key]!r}; kind `hf_encoder` runs only {values[0]!r}")
