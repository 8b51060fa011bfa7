"""The decoder families: those that are tested one by one, and those that the installed transformers lists."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

KNOWN = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "granite"),
    *("phi3", "olmo2", "smollm3", "gpt2", "gpt_neox"),
)
"""Families that are tested one by one; any other is run if it is exact (`zippkit_towers.hf_causal_lm.parity`)."""
_WITH_ENCODER = ("MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM")
"""Tables of families that are encoders, or have one, although transformers lists a causal head for some."""
_ENCODERS = frozenset({"bert-generation", "whisper"})
"""More such families, which stand in neither table."""


@cache
def known_to_transformers() -> frozenset[str]:
    """Every ``model_type`` for which the installed transformers lists a causal language model.

    Read from its source, because importing it takes seconds. Empty where it is not installed or cannot be read so.
    """
    return _listed("CAUSAL_LM")


@cache
def decoders() -> frozenset[str]:
    """Every ``model_type`` that is a decoder: it has a causal language model, and is not an encoder or part of one."""
    return frozenset(KNOWN) | known_to_transformers().difference(_ENCODERS, *map(_listed, _WITH_ENCODER))


def _listed(table: str) -> frozenset[str]:
    """The model types in one of the tables of transformers' ``modeling_auto.py``."""
    package = find_spec("transformers")
    places = package.submodule_search_locations if package else None
    file = Path(next(iter(places or ("",)))) / "models" / "auto" / "modeling_auto.py"
    try:
        _, found, rest = file.read_text(encoding="utf-8").partition(f"MODEL_FOR_{table}_MAPPING_NAMES = ")
    except OSError:
        return frozenset()
    return frozenset(re.findall(r'\(\s*"([^"]+)",\s*"', rest.partition("\n)")[0])) if found else frozenset()
