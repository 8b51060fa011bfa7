"""Writes a run or checkpoint as a folder that transformers loads without zippkit."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from zippkit.composition import Composition, load
from zippkit.errors import ZippkitError
from zippkit.system.files import appearing, write_json, write_text
from zippkit.training.hf_export.card import write_card
from zippkit.training.hf_export.description import describe, features, left_out, refuse_foreign
from zippkit.training.hf_export.frozen import frozen_references, told
from zippkit.training.hf_export.modeling_file import modeling_file
from zippkit.training.hf_export.tensors import exported_tensors
from zippkit.training.hf_export.tokenizers import write_tokenizers

MODELING = "modeling_zipped"
"""Name of the file with the model's code."""
WEIGHTS = "model.safetensors"


def export_model(run: Path, out: Path, *, reference_frozen: bool = False) -> list[str]:
    """Write the whole composition of a run or checkpoint for transformers.

    Args:
        run: the run or checkpoint.
        out: a folder that does not exist, or is empty.
        reference_frozen: name frozen towers that have a source by place and hash, instead of copying them.

    Returns:
        What there is to tell, a line each.

    Raises:
        ZippkitError: something of it cannot be exported, or something is in the way.
        CheckpointError: no finished run or sound checkpoint is there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ZippkitError(f"{out}: exists; choose another --hf")
    zipped = load(run)
    refuse_foreign(zipped)
    references = frozen_references(zipped) if reference_frozen else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with appearing(out) as new:
        new.mkdir(exist_ok=True)
        tokenizers = write_tokenizers(zipped, run, new)
        write_model(zipped, new, references, {"speech_units"} if "units" in tokenizers.values() else ())
        write_card(zipped, run, new, tokenizers, references)
    return [*left_out(zipped), *told(references, zipped)]


def write_model(
    zipped: Composition, folder: Path, references: dict[str, dict[str, Any]], more: Collection[str] = ()
) -> None:
    """Write config, code and weights.

    Args:
        zipped: the composition.
        folder: where to write.
        references: of frozen towers that are named and not copied.
        more: features of the code besides those that the settings ask for.
    """
    settings = describe(zipped, references)
    write_json(folder / "config.json", {**_about(), **settings})
    write_text(folder / f"{MODELING}.py", modeling_file({*features(settings), *more}, _docstring(zipped)))
    save_file(exported_tensors(zipped, but=references), folder / WEIGHTS, metadata={"format": "pt"})


def _about() -> dict[str, Any]:
    return {
        "model_type": "zippkit",
        "architectures": ["ZippedModel"],
        "auto_map": {"AutoConfig": f"{MODELING}.ZippedConfig", "AutoModel": f"{MODELING}.ZippedModel"},
        "dtype": "float32",
    }


def _docstring(zipped: Composition) -> str:
    kinds = ", ".join(f"{name} ({tower.kind})" for name, tower in zipped.spec.towers.items())
    links = ", ".join(f"{link.target} reads {link.source} ({link.kind})" for link in zipped.spec.links)
    return (
        f"The model {zipped.spec.name!r}, which zippkit composed and exported.\n\nTowers: {kinds}.\nLinks: {links}.\n\n"
        "It needs torch and transformers, and nothing else.\n\n"
        "Shapes: B rows, T new tokens, S tokens that are kept, L latents, D width, V ids, H heads, K width of a head.\n"
    )
