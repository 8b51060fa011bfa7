"""Packages that an extra brings: the table agrees with the package's metadata, and what is missing names its extra."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from zippkit.data.audio import write_audio
from zippkit.data.kmeans import cluster
from zippkit.experiment.cli import run_experiments
from zippkit.experiment.statistics import wilcoxon
from zippkit.system.extras import EXTRAS, MissingExtraError, require

pytestmark = pytest.mark.slow

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "moonshine_voice": "moonshine-voice",
    "moonshine_onnx": "useful-moonshine-onnx",
}


APART = {"wandb", "mlflow", "xla"}
"""Left out of `all`: who logs to a service names it, and XLA has an environment of its own."""


@pytest.mark.parametrize("module", EXTRAS)
def test_each_extra_brings_what_it_is_said_to(module: str) -> None:
    extra, _ = EXTRAS[module]
    name = DISTRIBUTIONS.get(module, module)
    assert any(line.startswith(name) for line in PROJECT["optional-dependencies"][extra])
    assert not any(line.startswith(name) for line in PROJECT["dependencies"])
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert (extra in everything.split("[")[1].rstrip("]").split(",")) == (extra not in APART)


@pytest.mark.parametrize("module", EXTRAS)
def test_a_missing_module_names_its_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    extra, purpose = EXTRAS[module]
    with pytest.raises(MissingExtraError) as error:
        require(module)
    assert str(error.value) == f"{purpose} needs {module}, which is not installed: pip install 'zippkit[{extra}]'"


def test_several_missing_modules_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "scipy"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"matplotlib, scipy, which are .*'zippkit\[plots,statistics\]'"):
        run_experiments(Path("recipes/paper"), None, "cpu", Path("nowhere"))


def test_what_needs_a_missing_module_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("soundfile", "sklearn", "scipy"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"soundfile.*zippkit\[audio\]"):
        write_audio(tmp_path / "a.wav", np.zeros(4, np.float32), 16_000)
    with pytest.raises(MissingExtraError, match=r"sklearn.*zippkit\[units\]"):
        cluster(np.eye(4, dtype=np.float32), 2, seed=0)
    with pytest.raises(MissingExtraError, match=r"scipy.*zippkit\[statistics\]"):
        wilcoxon({"a": 1.0}, {"a": 2.0})


def test_the_library_and_its_commands_import_no_extra() -> None:
    rooms = ("cli", "composition", "generation.api", "training.trainer", "evaluation.evaluate", "report.sizes")
    hidden = ", ".join(f"{name!r}: None" for name in EXTRAS)
    code = f"import sys; sys.modules.update({{{hidden}}}); import {', '.join(f'zippkit.{room}' for room in rooms)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
