"""Oracle WER: what a speech recogniser still understands of recordings that went into units and back to sound.

No model stands in between, so this is the floor of whatever a composition says with these units. Tokenizers and
vocoders are trained on the training split of a corpus (`.flac`/`.wav` + `.txt` pairs, split by prompt) and scored on
the first sentences of its test split, each prompt once::

    python benchmarks/oracle_wer.py ../shared/data/kathleen --out oracle.json
    python benchmarks/oracle_wer.py ../shared/data/kathleen --festival 500 --rates 25   # the same texts, synthesised
    python benchmarks/oracle_wer.py ... --transcribe my_module:my_function              # list of waves to list of texts

The scorer is `zippkit.scoring`'s Moonshine unless `--transcribe` names another. One thread; minutes per vocoder.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import jiwer
import torch

from zippkit.data.audio import Wave, log_mel, mel_filters, mel_to_sound, read_audio, resample
from zippkit.data.prepare import add_vocoder
from zippkit.data.readers import read
from zippkit.data.records import Record
from zippkit.data.units import UnitConfig, UnitTokenizer
from zippkit.system.progress import progress

RATE = 16_000
WINDOWS = {25: 6, 50: 3, 100: 2}
"""Units a second to the frames that a unit sees; the next one comes 100 / rate frames later."""
VOICE = "voice_cmu_us_slt_arctic_hts"
Transcribe = Callable[[Sequence[Wave]], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="Folder of sound files, each with its .txt.")
    parser.add_argument("--festival", type=int, metavar="N", help="Let festival say N of its texts instead.")
    parser.add_argument("--sentences", type=int, default=40)
    parser.add_argument("--rates", type=int, nargs="+", default=[25, 50], choices=sorted(WINDOWS))
    parser.add_argument("--transcribe", metavar="MODULE:FUNCTION")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Also write the rows as JSON.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as spoken:
        if args.festival:
            speak(list(read("pairs", args.root)), args.festival, Path(spoken))
        rows = run(list(read("pairs", spoken if args.festival else args.root)), args, transcriber(args.transcribe))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=2) + "\n")


def run(recordings: list[Record], args: argparse.Namespace, transcribe: Transcribe) -> dict[str, float]:
    """Row to WER in percent; each is printed as it is known."""
    by_text = {str(r.text): r for r in reversed(recordings) if r.split == "test"}
    test = sorted(by_text.values(), key=lambda r: r.id)[: args.sentences]
    if not test:
        raise SystemExit("no test sentences; take a larger corpus (--festival 500)")
    waves, train = [sound(r) for r in test], [sound(r) for r in recordings if r.split == "train"]
    rows: dict[str, float] = {}

    def score(name: str, sounds: Sequence[Wave]) -> None:
        said = [normalize(text) or "nothing" for text in transcribe(sounds)]
        rows[name] = round(100 * jiwer.wer([normalize(str(r.text)) for r in test], said), 1)
        print(f"| {name} | {rows[name]} |", flush=True)

    score("recordings", waves)
    filters = mel_filters(RATE, 512, 80)
    score("mel + Griffin-Lim, no quantisation", [_back(log_mel(wave, filters, 160)) for wave in waves])
    for rate in args.rates:
        config = UnitConfig(sample_rate=RATE, stride=100 // rate, window=WINDOWS[rate])
        units = UnitTokenizer.train(train, config, args.seed)
        ids = [units.encode(wave, RATE) for wave in waves]
        score(f"mel_units, {rate}/s", [units.to_sound(i) for i in ids])
        with progress("vocoder", 1) as advance:
            sounding = add_vocoder(units, train, args.seed, lambda n, of, what: advance(0, f"{what} {n}/{of}"))
        score(f"mel_units, {rate}/s, vocoder", [sounding.to_sound(i) for i in ids])
    return rows


def _back(mel: Wave) -> Wave:
    return mel_to_sound(mel, RATE, 512, 160, seed=0)


def sound(recording: Record) -> Wave:
    return resample(*read_audio(recording.files[0]), RATE)


def normalize(text: str) -> str:
    """Lower-case words, without punctuation."""
    return " ".join(re.sub(r"[^a-z0-9' ]", " ", text.lower()).split())


def transcriber(named: str | None) -> Transcribe:
    if named is None:
        from zippkit.evaluation.recognisers.base import open_scorer

        return open_scorer("moonshine").transcribe
    module, _, function = named.partition(":")
    found: Transcribe = getattr(import_module(module), function)
    return found


def speak(recordings: list[Record], count: int, folder: Path) -> None:
    """Say each text once, as `.wav` and `.txt` in ``folder``; needs festival and festvox-us-slt-hts (Debian)."""
    texts = list(dict.fromkeys(str(r.text) for r in recordings))[:count]
    lines = []
    for number, text in enumerate(texts):
        (folder / f"{number:04d}.txt").write_text(text)
        quoted = text.replace("\\", "").replace('"', "")
        lines.append(f'(utt.save.wave (utt.synth (Utterance Text "{quoted}")) "{folder}/{number:04d}.wav" \'riff)')
    (folder / "speak.scm").write_text("\n".join([f"({VOICE})", *lines]))
    subprocess.run(["festival", "--batch", str(folder / "speak.scm")], check=True, capture_output=True)


if __name__ == "__main__":
    main()
