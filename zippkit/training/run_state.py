"""Where a run stands, as plain data for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zippkit.checkpoint.manifest import read_checkpoint_manifest
from zippkit.training.going_on import read_history
from zippkit.training.metrics import read_metrics
from zippkit.training.run_folder import RunFolder


def run_state(path: Path) -> dict[str, Any]:
    """Its steps, its last metrics and evaluation, its best checkpoint, and the changes that it went on with.

    Raises:
        ZippkitError: no run is there.
    """
    run, lines = RunFolder(path), read_metrics(path)
    recipe = run.recipe()
    manifest = read_checkpoint_manifest(run.model) if run.model.exists() else {}
    phases = [each.label for each in recipe.main_phases]
    bests = {label: sorted(map(str, run.best(label).glob("step-*"))) for label in phases}
    return {
        "run": str(path),
        "name": recipe.name,
        "finished": run.model.exists(),
        "model": {"path": str(run.model), "step": manifest.get("step")} if manifest else None,
        "best": {label: found[-1] for label, found in bests.items() if found},
        "steps": run.reached(recipe),
        "metrics": lines[-1] if lines else None,
        "validation": next((line["validation"] for line in reversed(lines) if "validation" in line), None),
        "history": read_history(path),
    }
