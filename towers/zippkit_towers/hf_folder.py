"""Folders of Hugging Face models, without torch and transformers."""

from __future__ import annotations

from pathlib import Path

WANTED = ("*.json", "*.safetensors", "*.txt", "tokenizer.model")
"""What is fetched of a hub id: nothing that could hold code or a pickle."""


def local_folder(path: str) -> Path:
    """A local folder, or where the hub's local cache holds an id; nothing is downloaded.

    Raises:
        ValueError: neither is there.
    """
    folder = Path(path)
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path, local_files_only=True, allow_patterns=list(WANTED)))
    except Exception as error:
        # huggingface_hub raises one kind of error for a strange id, another for one that it has not fetched.
        raise ValueError(f"{path!r} is no folder, nor in the hub's local cache (`hf download {path}`)") from error
