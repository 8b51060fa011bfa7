"""Claims for the page: how many got which verdict, and each with the paper's numbers and ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zippkit.experiment.claims import Judged
from zippkit.experiment.results import Results
from zippkit.experiment.statistics import Verdict
from zippkit.experiment.words import comparison, ours

LOOKS = {Verdict.HOLDS: "good", Verdict.FAILS: "bad", Verdict.UNKNOWN: "note", Verdict.UNMEASURED: "note"}
Verdicts = Sequence[tuple[Results, Sequence[Judged]]]


class Tile(NamedTuple):
    """A number in large, and what it is."""

    number: str
    what: str
    look: str = ""


class ClaimRow(NamedTuple):
    """A claim as it stands in a table."""

    text: str
    compared: str
    paper: str
    here: str
    verdict: str
    look: str
    why: str


def tiles(verdicts: Verdicts) -> Iterator[Tile]:
    """Yield the number of claims of each verdict; `not measured` only where there are some."""
    counts = Counter(claim.verdict for _, judged in verdicts for claim in judged)
    for verdict in Verdict:
        if counts[verdict] or verdict is not Verdict.UNMEASURED:
            yield Tile(str(counts[verdict]), verdict.value, LOOKS[verdict])


def claim_rows(results: Results, judged: Sequence[Judged]) -> list[ClaimRow]:
    """Return a row for each claim: the paper's words and numbers, ours, and the verdict."""
    return [
        ClaimRow(
            text=each.claim.text,
            compared=comparison(results, each.claim),
            paper=each.claim.paper,
            here=ours(results, each),
            verdict=each.verdict.value,
            look=LOOKS[each.verdict],
            why=each.why,
        )
        for each in judged
    ]
