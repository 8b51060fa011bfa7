"""Whisper's weights out of CTranslate2's binary format, as a folder that transformers loads."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zippkit.errors import DataError

DTYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")
"""By CTranslate2's number; bfloat16 (5) does not occur here."""
CONFIG: dict[str, Any] = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "dtype": "float16",
    "vocab_size": 51864,
    "num_mel_bins": 80,
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_layers": 4,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "activation_function": "gelu",
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "pad_token_id": 50256,
    "decoder_start_token_id": 50257,
}
EXTRACTOR = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "processor_class": "WhisperProcessor",
    "feature_size": 80,
    "sampling_rate": 16000,
    "hop_length": 160,
    "n_fft": 400,
    "chunk_length": 30,
    "n_samples": 480000,
    "nb_max_frames": 3000,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
}
NO_TIMESTAMPS = 50362
NORMS = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm", "ffn": "final_layer_norm"}
LINEARS = {"ffn/linear_0": "fc1", "ffn/linear_1": "fc2", "self_attention/linear_1": "self_attn.out_proj"}
WHOLE = {
    "position_encodings/encodings": "embed_positions.weight",
    "embeddings/weight": "embed_tokens.weight",
    "layer_norm/gamma": "layer_norm.weight",
    "layer_norm/beta": "layer_norm.bias",
}


def write_whisper(binary: bytes, config: dict[str, Any], tokenizer: bytes, out: Path) -> None:
    """Write a Hugging Face folder of Whisper tiny.en.

    Args:
        binary: CTranslate2's ``model.bin``.
        config: CTranslate2's ``config.json``, which holds the tokens that are never said.
        tokenizer: ``tokenizer.json``.
        out: the folder, which does not exist yet.

    Raises:
        DataError: another format, or tensors that Whisper tiny.en does not have.
    """
    from safetensors.numpy import save_file

    tensors = {name: array for key, value in arrays(binary) for name, array in renamed(key, value)}
    out.mkdir(parents=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    generation = {
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "pad_token_id": 50256,
        "decoder_start_token_id": 50257,
        "no_timestamps_token_id": NO_TIMESTAMPS,
        "is_multilingual": False,
        "max_length": 448,
        "return_timestamps": False,
        "suppress_tokens": config["suppress_ids"],
        "begin_suppress_tokens": config["suppress_ids_begin"],
    }
    for name, told in (("config", CONFIG), ("preprocessor_config", EXTRACTOR), ("generation_config", generation)):
        (out / f"{name}.json").write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (out / "tokenizer.json").write_bytes(tokenizer)


def shorten(folder: Path, seconds: int) -> None:
    """Leave an encoder positions for so many seconds of sound, 50 states each.

    It is another encoder: the original attends to the silence after a recording.
    """
    from safetensors.numpy import load_file, save_file

    name = "model.encoder.embed_positions.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name][: 50 * seconds].copy()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    changes = {
        "config.json": {"max_source_positions": 50 * seconds},
        "preprocessor_config.json": {
            "chunk_length": seconds,
            "n_samples": 16000 * seconds,
            "nb_max_frames": 100 * seconds,
        },
    }
    for file, changed in changes.items():
        told = json.loads((folder / file).read_text(encoding="utf-8")) | changed
        (folder / file).write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def arrays(binary: bytes) -> Iterator[tuple[str, NDArray[Any]]]:
    """The arrays of a CTranslate2 file of version 6, without its scalars.

    Raises:
        DataError: another format.
    """
    version, at = struct.unpack_from("<I", binary)[0], 4
    spec, at = _string(binary, at)
    revision, n_arrays = struct.unpack_from("<II", binary, at)
    at += 8
    if (version, spec) != (6, "WhisperSpec"):
        raise DataError(f"not a Whisper of CTranslate2's version 6: version {version}, {spec!r}, revision {revision}")
    for _ in range(n_arrays):
        name, at = _string(binary, at)
        rank = binary[at]
        shape = struct.unpack_from(f"<{rank}I", binary, at + 1)
        number, n_bytes = struct.unpack_from("<BI", binary, at + 1 + 4 * rank)
        at += 6 + 4 * rank
        if rank:
            yield (
                name,
                np.frombuffer(binary, DTYPES[number], n_bytes // np.dtype(DTYPES[number]).itemsize, at).reshape(shape),
            )
        at += n_bytes


def _string(binary: bytes, at: int) -> tuple[str, int]:
    length = struct.unpack_from("<H", binary, at)[0]
    return binary[at + 2 : at + 1 + length].decode(), at + 2 + length


def renamed(key: str, value: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Transformers' names of one array, which may hold several projections.

    Raises:
        DataError: an array that Whisper does not have, or a bias of keys, which transformers has not.
    """
    side, _, rest = key.partition("/")
    if rest in WHOLE:
        yield f"model.{side}.{WHOLE[rest]}", value
    elif rest.startswith("conv"):
        yield f"model.{side}.{rest.replace('/', '.')}", value
    elif rest.startswith("layer_") and "/" in rest:
        layer, _, inside = rest.partition("/")
        prefix = f"model.{side}.layers.{layer.removeprefix('layer_')}"
        yield from ((f"{prefix}.{name}", each) for name, each in _of_layer(inside, value))
    elif key != "decoder/projection/weight":
        raise DataError(f"{key}: no array of Whisper")


def _of_layer(inside: str, value: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    part, _, what = inside.rpartition("/")
    block = part.partition("/")[0]
    if what in {"gamma", "beta"}:
        yield f"{NORMS[block]}.{'weight' if what == 'gamma' else 'bias'}", value
    elif part in LINEARS:
        yield f"{LINEARS[part]}.{what}", value
    elif part == "self_attention/linear_0":
        yield from _projections("self_attn", "qkv", what, value)
    elif part == "attention/linear_0":
        yield from _projections("encoder_attn", "q", what, value)
    elif part == "attention/linear_1":
        yield from _projections("encoder_attn", "kv", what, value)
    elif part == "attention/linear_2":
        yield f"encoder_attn.out_proj.{what}", value
    else:
        raise DataError(f"{inside}: no array of a Whisper layer")


def _projections(block: str, which: str, what: str, value: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    for letter, rows in zip(which, np.split(value, len(which)), strict=True):
        if (letter, what) != ("k", "bias"):
            yield f"{block}.{letter}_proj.{what}", np.ascontiguousarray(rows)
        elif rows.any():
            raise DataError(f"{block}: its keys have a bias, which Whisper has not")
