"""One spelling for what sounds the same (case, punctuation, numbers), and word error rates in that spelling."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SMALL = {word: i for i, word in enumerate((*DIGITS, *_TEENS))} | {word: 10 * i for i, word in enumerate(_TENS, 2)}
LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Substitutions, deletions and insertions over reference words (jiwer), in the words that `normalize` gives."""
    import jiwer

    return float(jiwer.wer([normalize(text) for text in references], [normalize(text) for text in hypotheses]))


def normalize(text: str) -> str:
    """Lower-case words without punctuation, every number as its digits in words.

    So ``21``, ``twenty-one`` and ``2 1`` are all ``two one``: a recogniser may write a spoken digit string as one
    number, and which of them was said cannot be told from what it wrote.
    """
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", re.sub(r"['\u2019]", "", text))
    text = re.sub(r"(?<=\d)\.(?=\d)", " point ", text)
    words = re.findall(r"\d|[^\W\d_]+", text)
    # "a hundred" is a number like any other.
    counts = [word == "a" and after in ("hundred", *LARGE) for word, after in pairwise([*words, ""])]
    return " ".join(_spelt(["one" if count else word for word, count in zip(words, counts, strict=True)]))


def _spelt(words: Sequence[str]) -> Iterator[str]:
    at = 0
    while at < len(words):
        word = words[at]
        if word.isdecimal():
            yield DIGITS[int(word)]
            at += 1
        elif word in SMALL:
            value, at = _number(words, at)
            yield from (DIGITS[int(digit)] for digit in str(value))
        else:
            yield word
            at += 1


def _number(words: Sequence[str], at: int) -> tuple[int, int]:
    """The number in words that begins at ``at``, and where it ends."""
    total, limit = 0, 10**12
    while at < len(words) and words[at] in SMALL:
        group, after = _below_a_thousand(words, at)
        scale = LARGE.get(words[after], 1) if after < len(words) else 1
        if group == 0 or scale >= limit:
            # "two thousand zero", "one thousand two thousand": another number begins.
            return (total, at) if limit < 10**12 else (group, after)
        total, limit, at = total + group * scale, scale, after + (scale > 1)
        if scale == 1:
            break
        at += _and_goes_on(words, at)
    return total, at


def _below_a_thousand(words: Sequence[str], at: int) -> tuple[int, int]:
    value, at = _below_a_hundred(words, at)
    if 0 < value < 100 and at < len(words) and words[at] == "hundred":
        value, at = value * 100, at + 1
        after = at + _and_goes_on(words, at)
        if after < len(words) and SMALL.get(words[after], 0) > 0:
            rest, end = _below_a_hundred(words, after)
            if words[end : end + 1] != ["hundred"]:
                value, at = value + rest, end
    return value, at


def _below_a_hundred(words: Sequence[str], at: int) -> tuple[int, int]:
    value = SMALL[words[at]]
    if value >= 20 and at + 1 < len(words) and 0 < SMALL.get(words[at + 1], 0) < 10:
        return value + SMALL[words[at + 1]], at + 2
    return value, at + 1


def _and_goes_on(words: Sequence[str], at: int) -> bool:
    """Whether an ``and`` stands inside a number, as in "two hundred and one"."""
    return at + 1 < len(words) and words[at] == "and" and SMALL.get(words[at + 1], 0) > 0
