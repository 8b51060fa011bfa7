"""Claims on the page: all of them in one overview, and each experiment's with the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from zippkit.experiment.claims import Judged
from zippkit.experiment.results import Results
from zippkit.experiment.statistics import Verdict
from zippkit.experiment.words import comparison, ours
from zippkit.report.run_page import Markup, markup, tag

LOOKS = {Verdict.HOLDS: "good", Verdict.FAILS: "bad", Verdict.UNKNOWN: "note", Verdict.UNMEASURED: "note"}
Verdicts = Sequence[tuple[Results, Sequence[Judged]]]


def tiles(verdicts: Verdicts) -> Iterator[Markup]:
    """How many claims got each verdict; `not measured` only where there are some."""
    counts = Counter(claim.verdict for _, judged in verdicts for claim in judged)
    for verdict in Verdict:
        if counts[verdict] or verdict is not Verdict.UNMEASURED:
            yield tile(str(counts[verdict]), verdict.value, LOOKS[verdict])


def tile(number: str, what: str, look: str = "") -> Markup:
    """A number in large."""
    return tag("div", tag("b", number, class_=look), tag("span", what), class_="tile")


def overview(verdicts: Verdicts) -> Markup:
    """Every claim in a table, the experiment's name beside its first."""
    rows = []
    for results, judged in verdicts:
        experiment = results.grid.experiment
        for i, each in enumerate(judged):
            link = tag("a", experiment.title, href=f"#{experiment.name}")
            first = [tag("td", link, rowspan=str(len(judged)))] if i == 0 else []
            rows.append(tag("tr", *first, tag("td", each.claim.text, class_="words"), _verdict(each)))
    return table(["experiment", "claim", "here"], rows)


def claims_table(results: Results, judged: Sequence[Judged]) -> Markup:
    """The paper's words and numbers, ours, and the verdict."""
    rows = [
        tag(
            "tr",
            tag("td", Markup(markup(each.claim.text) + _compared(results, each)), class_="words"),
            tag("td", each.claim.paper, class_="words"),
            tag("td", ours(results, each), class_="words"),
            _verdict(each, each.why),
        )
        for each in judged
    ]
    return table(["the paper says", "the paper's numbers", "here", "verdict"], rows)


def _compared(results: Results, judged: Judged) -> Markup:
    return tag("small", f"compared: {comparison(results, judged.claim)}")


def _verdict(judged: Judged, why: str = "") -> Markup:
    verdict = tag("span", judged.verdict.value, class_=LOOKS[judged.verdict])
    return tag("td", Markup(verdict + (tag("small", why) if why else "")), class_="name")


def table(columns: Sequence[str], rows: Sequence[Markup]) -> Markup:
    """A table that scrolls where it is too wide."""
    head = tag("thead", tag("tr", *(tag("th", column) for column in columns)))
    return tag("div", tag("table", head, tag("tbody", *rows)), class_="scroll")
