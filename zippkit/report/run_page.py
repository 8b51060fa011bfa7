"""One page about a finished run: what it is, what it scored, what is proved about it, and how it was made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from zippkit.composition import Composition, load
from zippkit.evaluation.certificates import verify
from zippkit.evaluation.evaluation_file import Evaluated, read_evaluation
from zippkit.plan.diagram.dark import DARK_STYLE
from zippkit.plan.diagram.diagram import svg
from zippkit.report.examples import examples
from zippkit.report.html import render
from zippkit.report.loss_panels import loss_panels
from zippkit.report.mask_examples import mask_examples
from zippkit.report.origin import origin, sources
from zippkit.report.summary import summary
from zippkit.spec.recipe import Recipe
from zippkit.system.extras import require
from zippkit.system.files import write_text
from zippkit.training.run_folder import RunFolder


@dataclass(frozen=True)
class _Finished:
    """A run and what its files say."""

    run: RunFolder
    recipe: Recipe
    zipped: Composition
    scores: Evaluated | None
    """``evaluation.json``; None before `zippkit eval`."""
    proofs: dict[str, Any]
    """``certificates.json``."""


def write_report(run: Path) -> Path:
    """Prove the certificates on a finished run and write ``report.html`` into it, whole or not at all.

    The page is one file, for HTML and for XML readers alike. What the run does not have yet is left out, with a
    sentence that says so.

    Returns:
        The page.

    Raises:
        ZippkitError: no finished run is there.
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib")
    folder = RunFolder(run)
    recipe = folder.recipe()
    with folder.locked("writes its report"):
        zipped = load(run)
        began = time.monotonic()
        proofs = verify(zipped).as_json()
        folder.write_json("certificates.json", proofs)
        folder.add_seconds("certificates", time.monotonic() - began)
        finished = _Finished(folder, recipe, zipped, read_evaluation(folder), proofs)
        write_text(run / "report.html", render("run.html", **_contents(finished)))
    return run / "report.html"


def _contents(it: _Finished) -> dict[str, object]:
    """Everything that the template shows, by its names there."""
    seconds: dict[str, float] = it.run.read_json("seconds.json")
    return {
        "name": it.recipe.name,
        "run": str(it.run.path),
        "summary": summary(it.zipped, it.scores, it.proofs["certificates"]),
        "diagram": Markup(svg(it.zipped.spec, it.zipped.graph).replace(DARK_STYLE, "")),
        "masks": mask_examples(it.run, it.recipe, it.zipped),
        "panels": loss_panels(it.run.path, list(it.zipped.spec.towers)),
        "scores": it.scores,
        "proofs": it.proofs["certificates"],
        "examples": [examples(task, it.run.path) for task in it.scores.tasks] if it.scores else [],
        "seconds": seconds,
        "longest": max(seconds.values()) or 1,
        "facts": origin(it.recipe),
        "sources": sources(it.run),
    }
