"""Exported models to the Hugging Face hub and back. The only file that talks to it for them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zippkit.errors import ZippkitError
from zippkit.plan.parts import checkpoint_folder
from zippkit.system.extras import require
from zippkit.training.hf_export.writing import WEIGHTS, export_model

_PULLED = ["*.json", "*.safetensors", "*.md", "*.svg", "*.py", "*.txt", "*.jinja", "*.model"]
"""What is fetched: nothing that is a pickle. Code is fetched, and run only by whoever trusts it."""


def push(run_or_folder: Path, repo: str, *, private: bool = False, message: str | None = None) -> str:
    """Upload an exported model; a run or checkpoint is exported first.

    Args:
        run_or_folder: a run, a checkpoint, or what ``zippkit export RUN --hf`` wrote.
        repo: name on the hub, such as ``organisation/model``; made where there is none.
        private: whether a new one is private.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        ZippkitError: nothing is there that can be exported, or the hub cannot be reached or refuses.
    """
    require("huggingface_hub")
    if is_exported(run_or_folder):
        return _upload(run_or_folder, repo, private, message)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / repo.rpartition("/")[2]
        export_model(run_or_folder, folder)
        return _upload(folder, repo, private, message)


def pull(repo: str, folder: Path, *, revision: str | None = None) -> Path:
    """Download an exported model into a folder that does not exist, or is empty.

    Args:
        repo: name on the hub.
        folder: where to write.
        revision: branch, tag or commit; the newest if left out.

    Raises:
        ZippkitError: something is in the way, or the hub cannot be reached or refuses.
    """
    require("huggingface_hub")
    from huggingface_hub import HfApi

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ZippkitError(f"{folder}: exists; choose another folder")
    with _told(f"pull {repo}"):
        HfApi(endpoint=_endpoint()).snapshot_download(repo, revision=revision, local_dir=folder, allow_patterns=_PULLED)
    if not is_exported(folder):
        raise ZippkitError(f"{repo}: holds no model that zippkit has exported (config.json with `auto_map`, {WEIGHTS})")
    return folder


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported model."""
    return (folder / "config.json").is_file() and (folder / WEIGHTS).is_file() and not _is_a_run(folder)


def _is_a_run(folder: Path) -> bool:
    try:
        return (checkpoint_folder(folder) / "spec.yaml").is_file()
    except ZippkitError:
        return True


def _upload(folder: Path, repo: str, private: bool, message: str | None) -> str:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=_endpoint())
    with _told(f"push to {repo}"):
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message or "zippkit push")
        return str(done.commit_url)


def _endpoint() -> str | None:
    """The hub's address, where it is not the public one; read anew at each call."""
    return os.environ.get("HF_ENDPOINT")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn whatever the hub's client raises into one sentence.

    Raises:
        ZippkitError: says what to do.
    """
    try:
        yield
    except ZippkitError:
        raise
    except Exception as error:
        # The client raises errors of its own, of its transport, and of the operating system.
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = " ".join(str(error).split())[:200]
        fix = {
            None: "is there a network? HF_HUB_OFFLINE and HF_ENDPOINT say where the hub is",
            401: "log in first, `hf auth login`, or set HF_TOKEN",
            403: "your token may not write there",
            404: "no such model there, or it is private and you are not logged in",
        }.get(status, f"the hub answered {status}")
        raise ZippkitError(f"{what}: {fix} ({type(error).__name__}: {why})") from error
