"""Kinds by name: what is registered, by which package, and what is told of those that are unknown or broken."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from helpers.plugins import install
from zippkit.model.links.base import Link
from zippkit.model.tower import Tower
from zippkit.spec import registry
from zippkit.spec.kinds import LinkConfig, TowerConfig
from zippkit.spec.registry import LINKS, TOWERS, Kind, UnknownKindError, config_class, implementation, kinds


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_own_kinds() -> None:
    assert Kind("decoder", TOWERS, "zippkit_towers.decoder.config:DecoderConfig", "zippkit") in kinds(TOWERS)
    assert "gated_cross_attention" in [kind.name for kind in kinds(LINKS)]


@pytest.mark.parametrize("group", [TOWERS, LINKS])
def test_every_registered_kind_is_whole(group: str) -> None:
    base, config = (Tower, TowerConfig) if group == TOWERS else (Link, LinkConfig)
    for kind in kinds(group):
        assert issubclass(implementation(group, kind.name), base)
        assert issubclass(config_class(group, kind.name), config)
        assert implementation(group, kind.name).Config is config_class(group, kind.name)


def test_listing_imports_nothing(site: Path) -> None:
    install(site, "broken", TOWERS, imu="no_such_module:Tower")
    assert Kind("imu", TOWERS, "no_such_module:Tower", "broken") in kinds(TOWERS)


def test_installed_packages_are_read_once(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = []
    monkeypatch.setattr(registry, "entry_points", lambda group: (scans.append(group), entry_points(group=group))[1])
    install(site, "broken", TOWERS, imu="no_such_module:Tower")
    for _ in range(3):
        config_class(TOWERS, "decoder")
        assert "imu" in [kind.name for kind in kinds(TOWERS)]
    assert scans == [TOWERS]
    install(site, "second", TOWERS, gps="no_such_module:Tower")
    assert "gps" in [kind.name for kind in kinds(TOWERS)], "what is installed meanwhile is found"


def test_asking_for_a_config_imports_no_torch() -> None:
    asked = "from zippkit.spec.registry import *; config_class(TOWERS, 'decoder')"
    code = f"import sys; {asked}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_kind_names_the_nearest(site: Path) -> None:
    install(site, "motion", TOWERS, imu="x:Y")
    with pytest.raises(UnknownKindError, match="no tower of kind 'imus' is registered; did you mean 'imu'"):
        config_class(TOWERS, "imus")
    with pytest.raises(UnknownKindError, match="no link of kind 'imu' is registered"):
        config_class(LINKS, "imu")


def test_two_packages_of_one_name_are_told(site: Path) -> None:
    install(site, "first", TOWERS, imu="a:A")
    install(site, "second", TOWERS, imu="b:B")
    with pytest.raises(UnknownKindError, match=r"kind 'imu' is registered by several packages: \['first', 'second'\]"):
        config_class(TOWERS, "imu")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (None, "ModuleNotFoundError: No module named 'broken_motion'"),
        ("", "AttributeError: module 'broken_motion' has no attribute 'Imu'"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("Imu = (", "SyntaxError: "),
        ("raise RuntimeError('needs a licence')", "RuntimeError: needs a licence"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_kind_that_cannot_be_imported(
    site: Path, source: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "motion", TOWERS, imu="broken_motion:Imu")
    monkeypatch.delitem(sys.modules, "broken_motion", raising=False)
    if source is not None:
        (site / "broken_motion.py").write_text(source)
    with pytest.raises(UnknownKindError) as caught:
        config_class(TOWERS, "imu")
    assert str(caught.value).startswith(f"kind 'imu' (broken_motion:Imu) cannot be imported: {told}")


@pytest.mark.parametrize("source", ["Imu = 3", "class Imu: pass", "def Imu(): pass"])
def test_a_kind_that_is_no_tower(site: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "motion", TOWERS, imu="strange_motion:Imu")
    monkeypatch.delitem(sys.modules, "strange_motion", raising=False)
    (site / "strange_motion.py").write_text(source)
    monkeypatch.setattr("zippkit.spec.registry._load", lambda entry: entry.load())
    with pytest.raises(UnknownKindError, match="without a `Config` class; expected a Tower or Link"):
        config_class(TOWERS, "imu")


def test_a_config_whose_implementation_is_not_there(site: Path) -> None:
    install(site, "motion", TOWERS, imu="lazy_motion:ImuConfig")
    text = "class ImuConfig:\n    implementation = 'zippkit.model.tower:Twoer'\n"
    (site / "lazy_motion.py").write_text(text)
    assert config_class(TOWERS, "imu").__name__ == "ImuConfig"
    with pytest.raises(
        UnknownKindError, match=r"kind 'imu' \(zippkit.model.tower:Twoer\) cannot be imported: AttributeError"
    ):
        implementation(TOWERS, "imu")
