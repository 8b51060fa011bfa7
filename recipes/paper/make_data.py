"""Make the sentences of the paper's experiments: a small grammar or a file has them, festival speaks them.

Needs the Debian packages ``festival festvox-us-slt-hts``, ``pip install zippkit[all]``, and the folder of a pre-trained
llama with its ``tokenizer.json``. From the repository, for the preset ``cpu`` with stories260K (64 x 5):

    python recipes/paper/make_data.py path/to/stories260k --end 1

takes about ten minutes and writes ``data/paper_sentences`` and, as the text tower of the recipes, a copy of the
model's folder in ``data/paper_text``. The sentences are made of some eighty words that children's stories are full of;
the text tower was pre-trained on many million words of such stories, and the transcripts are a few thousand words. For
the preset ``gpu``, with open sentences, one a line, and SmolLM2-135M:

    python recipes/smollm2/fetch.py
    python recipes/paper/make_data.py runs/smollm2 --sentences sentences.txt --out data/gpu

| split | what |
|---|---|
| train | 2400 sentences as speech and text, and 2400 others as speech alone, for the speech tower |
| dev, test | 150 and 300 others, as they are |
| dev_other, other | 150 and 300 more, spoken faster or slower, under noise 45 dB below the voice (units take no more) |
| stories | 200 texts of the model's own, text alone: whether a tower still knows its own text |

A file's sentences are split in the same proportions, however many there are.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from zippkit.data.audio import Wave, read_audio, resample
from zippkit.data.dataset import Dataset, Example, Item
from zippkit.data.dataset_writer import refuse_to_overwrite, write_dataset
from zippkit.data.text_files import load_text_tokenizer
from zippkit.data.units import UnitConfig, UnitTokenizer
from zippkit.errors import DataError, ZippkitError
from zippkit.system.progress import progress

COUNTS = {"dev_other": 150, "train": 2400, "alone": 2400, "dev": 150, "test": 300, "other": 300}
"""``alone`` goes into the training split too, without its text."""
WHO = "Lily|Tom|Ben|Mom|Dad|Anna|The boy|The girl|The dog|The cat|The bird|The bear|She|He|They|The old man"
DID = "saw|liked|found|wanted|had|made|took|loved|lost|helped|heard|gave him|gave her|looked at|played with|ran to"
WHICH = "big|little|red|blue|happy|old|new|pretty|sad|funny|small|green"
WHAT = "ball|toy|tree|house|box|flower|car|hat|cake|book|dog|cat|bird|fish|boat|doll|frog|apple"
WHERE = "in the park|at home|in the garden|by the river|with a friend|with a smile|one day|every day|all day|too"
N_STORIES = 200
NOISE_DB = -45.0
VOICE = "cmu_us_slt_arctic_hts"
UNITS = UnitConfig(sample_rate=16_000, window=6, stride=4, n_units=1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the text tower")
    parser.add_argument(
        "--sentences", type=Path, help="what is spoken, one sentence a line; those of the grammar if left out"
    )
    parser.add_argument(
        "--end", type=int, help="token that the model says at a text's end; its tokenizer's own if left out"
    )
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder that receives both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there already")
    arguments = parser.parse_args()
    try:
        dataset = make(
            arguments.model, arguments.out, arguments.seed, arguments.overwrite, arguments.sentences, arguments.end
        )
    except ZippkitError as error:
        parser.exit(2, f"{error}\n")
    print(dataset.path, {name: len(dataset.split(name)) for name in dataset.splits})


def make(
    model: Path, out: Path, seed: int, overwrite: bool, file: Path | None = None, end: int | None = None
) -> Dataset:
    """Write both folders."""
    refuse_to_overwrite(out / "paper_sentences", overwrite)
    if not (model / "tokenizer.json").is_file():
        raise DataError(f"{model}: no tokenizer.json; expected the folder of a text tower")
    text = load_text_tokenizer(model / "tokenizer.json", end=end)
    sentences = split(read(file) if file else draw(seed))
    with tempfile.TemporaryDirectory() as scratch:
        files = speak(sentences, Path(scratch), seed)
        heard = {name: [load(file) for file in each] for name, each in files.items()}
    for name, seeds in others(seed).items():
        noise = np.random.default_rng(seeds)
        heard[name] = [noisy(wave, noise) for wave in heard[name]]
    units = UnitTokenizer.train(iter([*heard["train"], *heard["alone"]]), UNITS, seed)
    examples = {
        name: [example(name, i, sentences[name][i], wave, units) for i, wave in enumerate(waves)]
        for name, waves in heard.items()
    }
    examples["train"] += examples.pop("alone")
    examples["stories"] = [
        Example(f"story-{i:03d}", "", 0.0, {"text": told}) for i, told in enumerate(stories(model, seed))
    ]
    source = {"kind": "paper_sentences", "voice": VOICE, "seed": seed, "text": file.name if file else "grammar"}
    dataset = write_dataset(
        out / "paper_sentences",
        examples,
        {"text": text, "speech": units},
        source=source,
        partial=True,
        overwrite=overwrite,
    )
    shutil.copytree(model, out / "paper_text", dirs_exist_ok=overwrite, copy_function=shutil.copyfile)
    return dataset


def draw(seed: int) -> list[str]:
    """Different sentences, such as ``Lily found a red boat by the river.``"""
    numbers = np.random.default_rng(seed)

    def one(words: str) -> str:
        return str(numbers.choice(words.split("|")))

    found: dict[str, None] = {}
    while len(found) < sum(COUNTS.values()):
        which = f"{one(WHICH)} " if numbers.random() < 0.5 else ""
        where = f" {one(WHERE)}" if numbers.random() < 0.5 else ""
        found[f"{one(WHO)} {one(DID)} {one('the|a|her|his')} {which}{one(WHAT)}{where}."] = None
    return list(found)


def read(file: Path) -> list[str]:
    """The different lines of a file, without what festival's language would take for the end of a string.

    Raises:
        DataError: there are too few of them for every split to have one.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: no readable text ({error})") from None
    sentences = list(dict.fromkeys(line.strip().replace("\\", "").replace('"', "") for line in lines if line.strip()))
    fewest = -(-sum(COUNTS.values()) // min(COUNTS.values()))
    if len(sentences) < fewest:
        raise DataError(f"{file}: {len(sentences)} different sentences; expected at least {fewest}, one a line")
    return sentences


def split(sentences: list[str]) -> dict[str, list[str]]:
    """Sentences by split, in the proportions of ``COUNTS``, the last ones first."""
    left, total = list(sentences), sum(COUNTS.values())
    return {name: [left.pop() for _ in range(count * len(sentences) // total)] for name, count in COUNTS.items()}


def others(seed: int) -> dict[str, int]:
    """The splits that are hard to hear, and a seed for each."""
    return {"other": seed, "dev_other": seed + 1}


def stories(model: Path, seed: int) -> list[str]:
    """What the model tells by itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    teller, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    begin = torch.full((N_STORIES, 1), teller.config.bos_token_id)
    ids = teller.generate(
        begin, attention_mask=torch.ones_like(begin), do_sample=True, top_k=0, max_new_tokens=100, pad_token_id=2
    )
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def speak(sentences: dict[str, list[str]], folder: Path, seed: int) -> dict[str, list[Path]]:
    """A sound file for each sentence; those of ``other`` faster or slower.

    Raises:
        DataError: festival or its voice is not installed, or it failed.
    """
    if shutil.which("festival") is None:
        raise DataError("festival is not installed; apt-get install festival festvox-us-slt-hts")
    stretch = {name: np.random.default_rng(seeds) for name, seeds in others(seed).items()}
    files: dict[str, list[Path]] = {}
    with progress("festival", sum(map(len, sentences.values()))) as advance:
        n_spoken = 0
        for name, texts in sentences.items():
            files[name] = [folder / f"{name}-{i:04d}.wav" for i in range(len(texts))]
            for start in range(0, len(texts), 100):
                lines = [f"(voice_{VOICE})"]
                for text, file in zip(texts[start : start + 100], files[name][start:], strict=False):
                    rate = stretch[name].uniform(0.8, 1.25) if name in stretch else 1.0
                    lines.append(f"(Parameter.set 'Duration_Stretch {rate:.3f})")
                    lines.append(f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{file}" \'riff)')
                (folder / "speak.scm").write_text("\n".join(lines))
                said = subprocess.run(
                    ["festival", "--batch", str(folder / "speak.scm")], capture_output=True, text=True, check=False
                )
                missing = [file for file in files[name][start : start + 100] if not file.is_file()]
                if said.returncode or missing:
                    raise DataError(
                        f"festival did not speak {len(missing)} sentences; is the voice there (apt-get install "
                        f"festvox-us-slt-hts)? It said: {said.stderr.strip() or 'nothing'}"
                    )
                n_spoken += len(texts[start : start + 100])
                advance(n_spoken)
    return files


def load(file: Path) -> Wave:
    return resample(*read_audio(file), UNITS.sample_rate)


def noisy(wave: Wave, noise: np.random.Generator) -> Wave:
    """White noise ``NOISE_DB`` beside the sound's own power."""
    power = float(np.mean(wave**2)) * 10 ** (NOISE_DB / 10)
    mixed: Wave = (wave + noise.normal(0, power**0.5, len(wave))).astype(np.float32)
    return mixed


def example(name: str, index: int, text: str, wave: Wave, units: UnitTokenizer) -> Example:
    items: dict[str, Item] = {"speech": units.encode(wave, UNITS.sample_rate)}
    if name != "alone":
        items["text"] = text
    return Example(f"{name}-{index:04d}", "slt", len(wave) / UNITS.sample_rate, items)


if __name__ == "__main__":
    main()
