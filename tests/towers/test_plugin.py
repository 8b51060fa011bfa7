"""A third party's package, installed as pip does it: a tower and a link that zippkit has never heard of."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PLUGIN = Path(__file__).parents[1] / "plugin"
DOC = Path(__file__).parents[2] / "docs" / "add_a_tower.md"


def block(language: str, number: int = 0) -> str:
    """A code block of the page that explains the package."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", DOC.read_text(), flags=re.DOTALL)
    return blocks[number]


def test_the_page_shows_the_files_that_are_tested() -> None:
    assert block("python") == (PLUGIN / "imu_tower.py").read_text()
    assert block("python", 2) == (PLUGIN / "mean_link.py").read_text()
    assert block("toml") == (PLUGIN / "pyproject.toml").read_text()
    assert len(block("python").splitlines()) < 60


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed package, and the spec of the page."""
    folder = tmp_path_factory.mktemp("plugin")
    # pip builds beside the sources, so it is given a copy.
    shutil.copytree(PLUGIN, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*pip, "--disable-pip-version-check", "--target", folder / "site", folder / "source"], check=True, timeout=120
    )
    (folder / "site" / "spec.yaml").write_text(block("yaml"))
    return folder / "site"


def python(site: Path, code: str) -> str:
    # In front of what this process was told to import from.
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=site,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_kinds_are_listed_with_its_name(site: Path) -> None:
    code = """
from zippkit.spec.registry import LINKS, TOWERS, kinds
print([(kind.name, kind.package) for group in (TOWERS, LINKS) for kind in kinds(group)])
"""
    listed = python(site, code)
    assert "('imu', 'zippkit-imu')" in listed
    assert "('mean', 'zippkit-imu')" in listed


def test_a_mistake_in_its_config_is_told_like_any_other(site: Path) -> None:
    (site / "wrong.yaml").write_text(block("yaml").replace("reach", "raech"))
    code = """
import zippkit
try:
    zippkit.load_spec("wrong.yaml")
except zippkit.SpecError as error:
    print(error)
"""
    assert re.search(
        r"wrong.yaml:\d+: towers.motion.config.raech: unknown key 'raech'; did you mean 'reach'\?", python(site, code)
    )


def test_it_trains(site: Path) -> None:
    code = """
import torch, zippkit
from zippkit import Segment

zipped = zippkit.compile(zippkit.load_spec("spec.yaml"))
zipped.model.train()
rows = [["motion", "text"], ["text", "motion"]]
batch = zipped.collate([[Segment(name, [1, 2, 3]) for name in row] for row in rows])
parameters = [p for p in zipped.model.parameters() if p.requires_grad]
frozen = {name: p.clone() for name, p in zipped.model.named_parameters() if not p.requires_grad}
optimizer = torch.optim.Adam(parameters, lr=0.01)
losses = []
for _ in range(5):
    loss = zipped.loss(zipped.model(batch), batch)["total"]
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(float(loss.detach()))
assert losses[-1] < losses[0], losses
named = dict(zipped.model.named_parameters())
assert frozen and all(torch.equal(named[name], p) for name, p in frozen.items())
assert named["links.motion_to_text.0.gate"].item() != 0
assert named["links.text_to_motion.1.gate"].item() != 0
print("trained", type(zipped.model.tower("motion")).__name__)
"""
    assert python(site, code) == "trained Imu\n"


def test_it_keeps_the_protocols(site: Path) -> None:
    """The page's own test."""
    assert python(site, block("python", 1) + "\ntest_imu()\ntest_mean()\nprint('kept')") == "kept\n"
