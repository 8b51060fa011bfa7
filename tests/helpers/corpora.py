"""Small corpora as they lie on disk."""

from __future__ import annotations

from pathlib import Path


def touch(path: Path, text: str = "") -> Path:
    """A file with that text, in folders that are made where they are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
