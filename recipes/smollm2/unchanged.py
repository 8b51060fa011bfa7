"""Show on prompts that SmolLM2 says the same, token by token, once a speech tower is zipped to it.

    python recipes/smollm2/unchanged.py             # after fetch.py

The links' gates are opened and their outputs filled with noise first, so that they would be heard if they leaked. Each
prompt is continued greedily by zippkit (its caches, the zipped model) and by transformers' own ``generate`` (its own
caches, the model alone). Then the logits of prompts and answers, beside a row that hears speech, are compared bit
by bit with those of the tower compiled by itself.
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
from zippkit.batch.batch import Segment
from zippkit.composition import Composition
from zippkit.errors import ZippkitError
from zippkit.evaluation.certificates.probe import randomize_zero_inits
from zippkit.model.run_tower import tower_logits
from zippkit.spec.derived_recipe import single_tower

SPEC = Path(__file__).parents[1] / "compositions" / "smollm2_listens.yaml"
SYSTEM = "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
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
        parser.exit(2, f"{error}\nwas SmolLM2 fetched? python recipes/smollm2/fetch.py\n")
    print("| prompt | answer | tokens | as transformers' generate | logits as the tower alone | from transformers |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        tokens, bits = "the same" if row.same_tokens else "OTHER", "bit-equal" if row.same_bits else "DIFFER"
        print(f"| {row.prompt} | {row.answer} | {row.n_tokens} | {tokens} | {bits} | {row.gap:.1e} |")
    print(
        f"\nA row that hears speech: its logits differ from the tower's alone by up to {heard:.2g}; the links do act."
    )
    sys.exit(0 if heard and all(row.same_tokens and row.same_bits for row in rows) else 1)


@torch.no_grad()
def compare(file: Path, max_tokens: int) -> tuple[list[Row], float]:
    """A row for each prompt, and how far speech moves the logits of a text that hears it.

    Raises:
        ZippkitError: the model is not there, or the spec is wrong.
    """
    spec = zippkit.load_spec(file)
    zipped, alone = zippkit.compile(spec), zippkit.compile(single_tower(spec, "text"))
    randomize_zero_inits(zipped.model.eval())
    folder = spec.towers["text"].settings.weights_path()
    own, tokenizer = _own_model(folder), Tokenizer.from_file(f"{folder}/tokenizer.json")
    asked = [[_segment(tokenizer, turn) for turn in (SYSTEM, f"user\n{prompt}")] for prompt in PROMPTS]
    answers = [zippkit.generate(zipped, segments, ["text"], max_tokens)[0] for segments in asked]
    rows = [[*segments, answer] for segments, answer in zip(asked, answers, strict=True)]
    batch = zipped.collate([*rows, [Segment("speech", list(range(50))), *asked[0]]])
    text = batch.towers["text"]
    found, expected = zipped.model(batch)["text"], tower_logits(alone.model.eval().tower("text"), text)
    outcomes = []
    for i, (prompt, segments, answer) in enumerate(zip(PROMPTS, asked, answers, strict=True)):
        there = text.order[i] >= 0
        own_logits = own(text.tokens[i : i + 1, : int(there.sum())]).logits[0]
        outcomes.append(
            Row(
                prompt,
                " ".join(tokenizer.decode(answer.tokens).removeprefix("assistant").split()),
                len(answer.tokens),
                answer.tokens == continued(own, zipped, segments, max_tokens),
                torch.equal(found[i][there], expected[i][there]),
                float((found[i][there] - own_logits).abs().max()),
            )
        )
    return outcomes, float((found[-1] - expected[-1])[text.order[-1] >= 0].abs().max())


def _own_model(folder: Path | None) -> Any:
    import transformers

    auto: Any = transformers
    auto.utils.logging.disable_progress_bar()
    model = auto.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval()


def _segment(tokenizer: Tokenizer, turn: str) -> Segment:
    return Segment("text", tokenizer.encode(turn, add_special_tokens=False).ids)


def continued(own: Any, zipped: Composition, segments: list[Segment], max_tokens: int) -> list[int]:
    """The answer of transformers' own ``generate``, without its end id."""
    frame = zipped.graph.towers["text"].frame
    assert frame is not None
    turns = [token for segment in segments for token in (frame.begin, *segment.tokens, frame.end)]
    given = torch.tensor([[*turns, frame.begin]])
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
