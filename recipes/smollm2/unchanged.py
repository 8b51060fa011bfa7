"""Show on prompts that SmolLM2 says the same, token by token, once a speech tower is zipped to it.

    python recipes/smollm2/unchanged.py             # after fetch.py

The links' gates are opened and their outputs filled with noise first, so that they would be heard if they leaked. Each
prompt is continued greedily by zippkit (its caches, the zipped model) and by transformers' own ``generate`` (its caches,
the model alone). Then the logits of prompts and answers, beside a row that hears speech, are compared with those of the
tower compiled by itself: bit by bit.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

import zippkit
from zippkit.batch import Segment
from zippkit.certificates.probe import wake
from zippkit.composition import Composition
from zippkit.errors import ZippkitError
from zippkit.recipe import single_tower
from zippkit.tower import tower_logits

SPEC = Path(__file__).parents[1] / "compositions" / "smollm2_listens.yaml"
PROMPTS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write one sentence about a cat that plays the piano.",
    "List three fruits.",
    "What is 17 plus 25?",
    "Translate to French: good morning, my friend.",
    "Who wrote Romeo and Juliet?",
    "How do I boil an egg?",
)


@dataclass(frozen=True)
class Row:
    """What came out for one prompt."""

    prompt: str
    answer: str
    n_tokens: int
    same_tokens: bool
    """As transformers' own ``generate``."""
    same_bits: bool
    """The logits of prompt and answer, as the tower's alone."""
    gap: float
    """Largest difference from the logits of transformers' own forward."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, default=SPEC)
    parser.add_argument("--max-tokens", type=int, default=40)
    arguments = parser.parse_args()
    try:
        rows, heard = compare(arguments.spec, arguments.max_tokens)
    except ZippkitError as error:
        parser.exit(2, f"{error}\nfetch SmolLM2 first: python recipes/smollm2/fetch.py\n")
    print("| prompt | answer | tokens | as transformers' generate | logits as the tower alone | from transformers |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        tokens, bits = "the same" if row.same_tokens else "OTHER", "bit-equal" if row.same_bits else "DIFFER"
        print(f"| {row.prompt} | {row.answer} | {row.n_tokens} | {tokens} | {bits} | {row.gap:.1e} |")
    print(f"\nA row that hears speech: its logits differ from the tower's alone by up to {heard:.2g}; the links do act.")
    sys.exit(0 if heard and all(row.same_tokens and row.same_bits for row in rows) else 1)


@torch.no_grad()
def compare(file: Path, max_tokens: int) -> tuple[list[Row], float]:
    """A row for each prompt, and how far speech moves the logits of a text that hears it.

    Raises:
        ZippkitError: the model is not there, or the spec is wrong.
    """
    import transformers

    spec = zippkit.load_spec(file)
    zipped, alone = zippkit.compile(spec), zippkit.compile(single_tower(spec, "text"))
    wake(zipped.model.eval())
    folder = str(spec.towers["text"].settings.weights_path())
    auto: Any = transformers.AutoModelForCausalLM
    own = auto.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    asked = [tokenizer.encode(f"user\n{prompt}", add_special_tokens=False).ids for prompt in PROMPTS]
    answers = [zippkit.generate(zipped, [Segment("text", ids)], ["text"], max_tokens)[0].tokens for ids in asked]
    batch = zipped.collate(
        [
            *([Segment("text", ids), Segment("text", answer)] for ids, answer in zip(asked, answers, strict=True)),
            [Segment("speech", list(range(50))), Segment("text", asked[0])],
        ]
    )
    found = zipped.model(batch)["text"]
    expected = tower_logits(alone.model.eval().tower("text"), batch.towers["text"])
    rows = []
    for i, (prompt, ids, answer) in enumerate(zip(PROMPTS, asked, answers, strict=True)):
        there = batch.towers["text"].order[i] >= 0
        own_logits = own(batch.towers["text"].tokens[i : i + 1, : int(there.sum())]).logits[0]
        rows.append(
            Row(
                prompt,
                " ".join(tokenizer.decode(answer).split()),
                len(answer),
                answer == continued(own, zipped, ids, max_tokens),
                torch.equal(found[i][there], expected[i][there]),
                float((found[i][there] - own_logits).abs().max()),
            )
        )
    hears = batch.towers["text"].order[-1] >= 0
    return rows, float((found[-1] - expected[-1])[hears].abs().max())


def continued(own: Any, zipped: Composition, ids: list[int], max_tokens: int) -> list[int]:
    """The answer of transformers' own ``generate``, without its end id."""
    frame = zipped.graph.towers["text"].frame
    assert frame is not None
    given = torch.tensor([[frame.begin, *ids, frame.end, frame.begin]])
    out: Tensor = own.generate(
        given,
        attention_mask=torch.ones_like(given),
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=frame.end,
        pad_token_id=frame.end,
    )
    answer: list[int] = out[0, given.shape[1] :].tolist()
    return answer[:-1] if answer and answer[-1] == frame.end else answer


if __name__ == "__main__":
    main()
