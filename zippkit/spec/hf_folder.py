"""Where a Hugging Face model lies: a local folder, or a hub id; without torch and transformers."""

from __future__ import annotations

import re
from pathlib import Path

CONFIG, WEIGHTS = "config.json", "*.safetensors"
"""The file or pattern that a folder must hold to be read for its config, or for its weights."""
_FETCHED = {CONFIG: ["*.json"], WEIGHTS: ["*.json", "*.safetensors"]}
"""Fetched of a hub id: nothing that could hold code or a pickle, and no weights for the sake of a config."""
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def local_folder(path: str, needed: str = CONFIG) -> Path:
    """A local folder, or a hub id's in the hub's local cache; it is fetched there first where there is a network.

    Args:
        path: the folder or hub id.
        needed: `CONFIG` or `WEIGHTS`, which must be there.

    Raises:
        ValueError: neither is to be had.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(path):
        raise ValueError(f"{path!r} is no folder; expected one, or a hub id such as `organisation/model`")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(f"{path!r} is no folder, and hub ids need transformers: pip install 'zippkit[hf]'") from error
    found: Exception | None = None
    for offline in (True, False):
        try:
            cached = Path(snapshot_download(path, allow_patterns=_FETCHED[needed], local_files_only=offline))
        except Exception as error:
            # huggingface_hub raises one kind of error for a strange id, others for one that it cannot fetch.
            found = error
        else:
            if any(cached.glob(needed)):
                return cached
            found = None
    why = f" ({type(found).__name__})" if found else f" (there is no {needed})"
    fix = f"where there is a network: hf download {path}"
    raise ValueError(f"{path!r} is no folder, nor to be had from the hub{why}; fetch it first, {fix}")
