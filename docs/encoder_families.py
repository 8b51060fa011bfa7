"""Write docs/encoders.md: which encoders of the installed transformers kind `hf_encoder` runs, and why not the others.

python docs/encoder_families.py              tries all of them (some minutes), each tiny and with random weights
python docs/encoder_families.py bert siglip  tries these, and prints them

Not part of docs/generate.py, because it runs every model and depends on the installed transformers.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from zippkit.errors import ZippkitError
from zippkit_towers.hf_encoder.config import HfEncoderConfig
from zippkit_towers.hf_encoder.tower import HfEncoder

PAGE = Path(__file__).parent / "encoders.md"
FED = {"text": "token ids", "image": "pixels", "sound": "waveforms"}
MOST = 20_000_000
"""Parameters of the largest model that is still called tiny."""
TOO_LARGE = "not tried: too large at its smallest here"
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("intermediate_size", "d_ff", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 36),
    **dict.fromkeys(("head_dim", "d_kv"), 8),
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "conv_dim": [8, 12],
    "conv_kernel": [5, 3],
    "conv_stride": [3, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 5,
    "num_conv_pos_embedding_groups": 2,
}
"""Settings of the tiny models, by every name that configs have for them."""
INTRODUCTION = """\
<!-- Written by docs/encoder_families.py. -->
# Encoders of transformers

Which encoders of transformers {version} the tower kind `hf_encoder` runs: each built tiny with random weights, run
layer by layer, and compared with its own forward, in batches with padding and in training mode. Five are known by hand,
as whisper is; of all others the parts are guessed from the module tree and from what their forward gives its layers
([decision 16](decisions/0016-encoders-by-watching.md)), whenever one is built, so a family that is not here is tried
too. What is not exact to {tolerance:g} of the largest state is refused.

{exact} families are exact, {refused} are refused. Refused causal language models are the business of kind
`hf_causal_lm`, and left out here. Some are refused only because their tiny config does not suit them.

| family | exact | what it is fed, or why it is refused |
| --- | --- | --- |
"""


@dataclass(frozen=True)
class Row:
    """What became of one family."""

    family: str
    exact: bool
    reason: str
    """The kind of inputs; or why it is refused."""

    def __str__(self) -> str:
        return f"| `{self.family}` | {'yes' if self.exact else 'no'} | {self.reason.replace('|', ' ')} |"


def tiny_model(family: str) -> dict[str, Any]:
    """A family's settings as plain data, made small wherever it has a setting of a known name."""
    default = transformers.AutoConfig.for_model(family)
    names = getattr(type(default), "attribute_map", {})
    found: dict[str, Any] = {}
    for key, value in SIZES.items():
        name = names.get(key, key)
        try:
            has = hasattr(default, name) and isinstance(
                getattr(default, name), int | None if type(value) is int else list | tuple
            )
        except Exception:
            # Settings that differ by layer refuse to be read at once.
            has = False
        if has:
            found.setdefault(name, value)
    if type(getattr(default, "vision_config", None)).__name__ != "NoneType":
        found["vision_config"] = tiny_model(default.vision_config.model_type)
    return {"model_type": family, **found}


def tried(family: str) -> Row:
    """Build a family tiny, with random weights, and compare it with transformers' own forward."""
    torch.manual_seed(0)
    try:
        config = HfEncoderConfig.model_validate({"model": tiny_model(family)})
        tower = HfEncoder(config)
        if sum(parameter.numel() for parameter in tower.parameters()) > MOST:
            return Row(family, False, TOO_LARGE)
        with torch.no_grad():
            for parameter in tower.parameters():
                # Large enough that every part shows in the states.
                parameter.add_(0.1 * torch.randn_like(parameter))
        tower.check()
    except Exception as error:
        words = str(error) if isinstance(error, ZippkitError) else _reason(error)
        return Row(family, False, _said(words))
    part = "" if config.model_type == family else f", by its `{config.model_type}`"
    known = "; known by hand" if config.family.known else ""
    return Row(family, True, f"{FED[config.feed_kind]}{part}{known}")


def _said(words: str) -> str:
    """The reason, without what depends on the machine."""
    words = re.sub(r"^(towers: |kind `hf_encoder` does not run a '\S+' model: )", "", " ".join(words.split()))
    if "can't allocate memory" in words:
        return TOO_LARGE
    # Modules in messages are followed by where they lie.
    return re.sub(r" from '/\S*", "", words)


def _reason(error: Exception) -> str:
    """The message of pydantic, or of transformers' own check of its settings."""
    errors = getattr(error, "errors", None)
    return str(errors()[0]["ctx"]["error"]) if callable(errors) and "ctx" in errors()[0] else str(error)


def page(rows: Sequence[Row]) -> str:
    """The page with a row for each family, decoders left out."""
    from zippkit_towers.hf_encoder.parity import TOLERANCE

    kept = (row for row in rows if row.exact or row.family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    rows = sorted(kept, key=lambda row: (not row.exact, row.family))
    exact = sum(row.exact for row in rows)
    head = INTRODUCTION.format(
        version=transformers.__version__, tolerance=TOLERANCE[torch.float32], exact=exact, refused=len(rows) - exact
    )
    return head + "\n".join(map(str, rows)) + "\n"


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="only these; none: all of them, written to docs/encoders.md")
    families = parser.parse_args(arguments).families
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    rows = []
    for family in families or sorted(MODEL_MAPPING_NAMES):
        rows.append(tried(family))
        print(rows[-1], flush=True)
    if not families:
        PAGE.write_text(page(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
