"""Runs an exported model in a process of its own, in which zippkit cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from zippkit.errors import CheckpointError, ZippkitError

_SCRIPT = """
import json, sys
sys.modules["zippkit"] = sys.modules["zippkit_towers"] = None  # importing them raises ImportError
import torch
from safetensors.torch import save_file
from transformers import AutoModel

logits, said, here = {}, [], None
for number, (folder, rows, ways) in enumerate(json.load(open("asked.json"))):
    if folder != here:
        model, loaded = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
        wrong = {key: sorted(map(str, found)) for key, found in loaded.items() if found}
        if wrong:
            raise SystemExit(f"tensors of the folder do not fit its code: {wrong}")
        here = folder
        model.eval()
    with torch.no_grad():
        found = model(rows).logits
    logits |= {f"{number}.{i}": each.contiguous() for i, each in enumerate(found) if each is not None}
    said.append([model.generate(**way) for way in ways])
save_file(logits, "logits.safetensors")
json.dump(said, open("said.json", "w"))
"""
Rows = Sequence[Sequence[tuple[str, Any]]]
"""Segments of each row: modality, and plain lists of ids or floats."""


@dataclass(frozen=True)
class Said:
    """What an exported model makes of some rows."""

    logits: dict[int, Tensor]
    """(B, T, V) by number of the segment."""
    generated: list[list[list[tuple[str, list[int]]]]]
    """For each way of generating, each row's new segments."""


@dataclass(frozen=True)
class Asked:
    """What is asked of an exported model."""

    folder: Path
    rows: Rows
    """Of which the logits are wanted."""
    ways: Sequence[dict[str, Any]] = ()
    """Arguments of ``generate``, each for a call of its own."""


def run_alone(asked: Sequence[Asked]) -> list[Said]:
    """Load exported models and run them, where zippkit cannot be imported and no network is asked.

    Args:
        asked: those of one folder one after the other.

    Raises:
        ZippkitError: no exported model is there.
        CheckpointError: it cannot be loaded or run; says why.
    """
    for each in asked:
        if not (each.folder / "config.json").is_file():
            raise ZippkitError(f"{each.folder}: no exported model is there; zippkit export RUN --hf writes one")
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        cases = [(str(each.folder.resolve()), each.rows, list(each.ways)) for each in asked]
        (here / "asked.json").write_text(json.dumps(cases))
        surroundings = {**os.environ, "HF_MODULES_CACHE": str(here / "modules"), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", _SCRIPT]
        ran = subprocess.run(command, cwd=here, env=surroundings, capture_output=True, text=True, check=False)
        if ran.returncode:
            last = (ran.stderr.strip() or "it said nothing").splitlines()[-1]
            names = ", ".join(dict.fromkeys(str(each.folder) for each in asked))
            raise CheckpointError(f"{names}: cannot be run without zippkit: {last}")
        logits, said = load_file(here / "logits.safetensors"), json.loads((here / "said.json").read_text())
    found: list[Said] = []
    for number, generated in enumerate(said):
        own = {name: each for name, each in logits.items() if name.startswith(f"{number}.")}
        found.append(Said({int(name.partition(".")[2]): each for name, each in own.items()}, generated))
    return found
