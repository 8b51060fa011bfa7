"""Packages of strangers, as an installer would leave them on the path."""

from __future__ import annotations

from pathlib import Path

import pytest


def install(folder: Path, package: str, group: str, **entries: str) -> None:
    """A distribution that registers ``entries``, as pip would leave it in a folder on the path."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))


def register(folder: Path, monkeypatch: pytest.MonkeyPatch, group: str, **classes: type) -> None:
    """Register classes of a test as entry points, for as long as the test runs."""
    install(
        folder / "site", "stranger", group, **{name: f"{c.__module__}:{c.__qualname__}" for name, c in classes.items()}
    )
    monkeypatch.syspath_prepend(folder / "site")
