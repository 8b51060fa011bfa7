"""A checkpoint's manifest: the hashes of its files, and where each tower is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zippkit.errors import CheckpointError
from zippkit.model.weights import file_hash
from zippkit.plan.parts import CHECKPOINT_MANIFEST, SPEC
from zippkit.system.files import inside, parse_json

FORMAT = 2


def read_checkpoint_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest of a checkpoint.

    Raises:
        CheckpointError: none there, or of another format.
    """
    try:
        manifest = parse_json((folder / CHECKPOINT_MANIFEST).read_bytes())
    except OSError as error:
        raise CheckpointError(f"{folder}: not a checkpoint ({CHECKPOINT_MANIFEST} is missing)") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / CHECKPOINT_MANIFEST}: not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        seen = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise CheckpointError(f"{folder / CHECKPOINT_MANIFEST}: not a checkpoint's; format {seen!r}, expected {FORMAT}")
    hashes, towers = manifest.get("files"), manifest.get("towers")
    if not isinstance(hashes, dict) or SPEC not in hashes or not isinstance(towers, dict):
        raise CheckpointError(f"{folder / CHECKPOINT_MANIFEST}: tells no hash of {SPEC}, or nothing of towers")
    return manifest


def check_whole(folder: Path) -> None:
    """Compare a checkpoint's own files with their hashes; the towers that it names elsewhere are not looked at.

    Raises:
        CheckpointError: not a checkpoint, cut short, or changed since it was written.
    """
    check_files(read_checkpoint_manifest(folder)["files"], folder)


def check_files(files: Mapping[str, str], folder: Path) -> None:
    """Compare a checkpoint's files with their hashes.

    Raises:
        CheckpointError: a file is missing, outside the folder, cut short or changed.
    """
    for name, digest in files.items():
        try:
            file = inside(folder, name)
        except ValueError as error:
            raise CheckpointError(f"{folder / CHECKPOINT_MANIFEST}: files: {error}") from error
        if not file.is_file():
            raise CheckpointError(f"{folder}: {name} is missing")
        if file_hash(file) != digest:
            raise CheckpointError(
                f"{file}: differs from its hash in {CHECKPOINT_MANIFEST}; cut short or changed since it was written"
            )
