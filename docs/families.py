"""Write docs/families.md: which decoders of the installed transformers kind `hf_causal_lm` runs, and how exactly.

python docs/families.py            tries all of them (some minutes), each tiny and with random weights
python docs/families.py llama opt  tries these, and prints them

Not part of docs/generate.py, because it runs every model and depends on the installed transformers.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from zippkit.errors import ZippkitError
from zippkit.spec.validation import validate
from zippkit_towers.hf_causal_lm.config import HfCausalLmConfig
from zippkit_towers.hf_causal_lm.families import known_to_transformers
from zippkit_towers.hf_causal_lm.parity import check_parity
from zippkit_towers.hf_causal_lm.tower import HfCausalLm

PAGE = Path(__file__).parent / "families.md"
MOST = 20_000_000
"""Parameters of the largest model that is still called tiny."""
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads"), 4),
    "encoder_attention_heads": 4,
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size"), 24),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"), 64),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "n_group", "topk_group"), 2),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 5,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "qk_head_dim"), 8),
    "vocab_size_per_layer_input": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Settings of the tiny models, by every name that configs have for them."""
_PLAIN = {"head_dim": 8, "num_key_value_heads": 4}
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    _PLAIN,
    _PLAIN | {"rotary_dim": 4, "qk_head_dim": 16},
    _PLAIN | {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    {"head_dim": None, "num_key_value_heads": None},
    {"head_dim": ...},
    {"attention_types": [[["global", "local"], 2]], "num_experts_per_tok": 1, "is_decoder": True},
)
"""What is tried besides, because sizes have to fit each other: other ones, none (null), or none said (an ellipsis)."""
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
OF_FAMILY: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA,
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gemma3n_text": {"num_kv_shared_layers": 0, "laurel_rank": 8, "activation_sparsity_pattern": None},
    # As in the larger models of this family.
    "gemma4_text": {"hidden_size_per_layer_input": 0},
    # As in the models of this family without Mamba.
    "granitemoehybrid": _MAMBA | {"layer_types": ["full_attention"] * 4, "shared_intermediate_size": 24},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
}
"""Settings that only one family has, or that nothing else may take."""
OF_A_KIND = {
    **dict.fromkeys(("gemma4", "gemma4_text"), "without inputs per layer"),
    "granitemoehybrid": "without Mamba layers",
}
"""Which models of a family the answer is about, where it is not about all."""
INTRODUCTION = """\
<!-- Written by docs/families.py; change that file. -->
# Decoders of transformers

Kind `hf_causal_lm` looks up no family by its name: it finds the parts of any decoder in its module tree, and takes it
only if it then computes what transformers' own forward does. With transformers {version} it was given each of the {n}
model types that have a causal language model, tiny and with random weights: {exact} run exactly, and the rest is
refused, each in one sentence.

A folder of your own is compared in the same way whenever it is built, with its own settings and weights; a family that
is exact here may be refused there, and the other way round. The difference is the largest one of any logit, over the
largest logit: at once, part by part with a cache, in training mode, at the last positions, and past a sliding window
([decision 15](decisions/0015-decoders-by-parity.md)).
"""


@dataclass(frozen=True)
class Row:
    """What became of one family."""

    family: str
    gap: float | None
    """Largest difference of logits, relative to the largest; None where it is refused."""
    reason: str = ""


def tiny_configs(family: str) -> Iterator[dict[str, Any]]:
    """A family's settings as plain data, made small wherever it has a setting of a known name.

    The first that can be built counts, because some sizes follow from others.
    """
    default = transformers.AutoConfig.for_model(family).get_text_config(decoder=True)
    for more in VARIANTS:
        wanted = {key: value for key, value in (SIZES | more).items() if value is not ...}
        sizes = {key: value for key, value in wanted.items() if _has(default, key, key in more)}
        sizes |= OF_FAMILY.get(default.model_type, {})
        try:
            data = type(default)(**sizes).to_dict()
        except Exception:
            continue
        yield data | {"model_type": default.model_type}


def _has(config: Any, key: str, also_none: bool) -> bool:
    try:
        return hasattr(config, key) and (also_none or getattr(config, key) is not None)
    except Exception:
        # Some configs refuse to tell one value for all layers.
        return False


def tried(family: str) -> Row:
    """Build a family tiny, with random weights, and compare it with transformers' own forward."""
    reasons = []
    try:
        for data in tiny_configs(family):
            row = _tried(family, data)
            if row.gap is not None:
                return row
            reasons.append(row.reason)
    except Exception as error:
        reasons.append(f"transformers does not build its config: {error}")
    # What is not about the sizes that were chosen here.
    told = [reason for reason in reasons if "cannot build" not in reason]
    reason = [*told, *reasons, "not tried: transformers takes none of the sizes that are tried here"][0]
    return Row(family, None, " ".join(reason.split()))


def _tried(family: str, data: dict[str, Any]) -> Row:
    torch.manual_seed(0)
    config, complaints = validate(HfCausalLmConfig, {"model": data}, ())
    if config is None:
        return Row(family, None, complaints[0][1])
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in HfCausalLm(config).parameters())
        if size > MOST:
            return Row(family, None, f"not tried: {size:,} parameters at its smallest here")
        tower = HfCausalLm(config)
        with torch.no_grad():
            for parameter in tower.parameters():
                if parameter.dim() > 1:
                    # Large enough that every part shows in the logits.
                    parameter.normal_(std=0.2)
        return Row(family, check_parity(tower))
    except ZippkitError as error:
        return Row(family, None, str(error))


def page(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    exact = [row for row in rows if row.gap is not None]
    lines = [
        *INTRODUCTION.format(version=transformers.__version__, n=len(rows), exact=len(exact)).splitlines(),
        "",
        "| family | exact | difference, or why it is refused |",
        "| --- | --- | --- |",
    ]
    for row in rows:
        told = "no | " + row.reason.replace("|", "\\|") if row.gap is None else f"yes | {row.gap:.0e}"
        told += f", {OF_A_KIND[row.family]}" if row.family in OF_A_KIND and row.gap is not None else ""
        lines.append(f"| `{row.family}` | {told} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="only these; none: all of them, written to docs/families.md")
    families = parser.parse_args(arguments).families
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    rows = []
    for family in families or sorted(known_to_transformers()):
        rows.append(tried(family))
        print(rows[-1], flush=True)
    if not families:
        PAGE.write_text(page(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
