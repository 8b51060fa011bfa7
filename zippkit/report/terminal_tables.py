"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from zippkit.evaluation.evaluation_file import Evaluated, Retention, SpeechScore, TaskScore, read_evaluation
from zippkit.report.sizes import PartSize, Sizes, TaskCost

if TYPE_CHECKING:
    from zippkit.report.rank_sizes import RankCost
from zippkit.training.run_folder import RunFolder


def show(*tables: Table) -> None:
    """Print tables one below the other."""
    console = Console()
    for table in tables:
        console.print(table)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        words = i == 0 or column == "claim"
        table.add_column(column, justify="left" if words else "right")
    for row in rows:
        # Text, so that square brackets are not read as styles.
        table.add_row(*map(Text, row))
    return table


def answers_table(task: TaskScore | SpeechScore, n_examples: int) -> Table:
    """References beside hypotheses."""
    table = Table("example", "reference", "hypothesis", title=task.task, title_justify="left")
    for answer in task.answers[:n_examples]:
        table.add_row(Text(answer.id), Text(answer.reference), Text(answer.hypothesis))
    return table


def summary_tables(run: Path, scores: Evaluated | None = None) -> list[Table]:
    """Return tables of what a run's files hold so far: scores (or those given), retention, certificates, seconds."""
    folder = RunFolder(run)
    tables = []
    scores = scores or read_evaluation(folder)
    if scores:
        for each in (scores, *scores.more):
            tables += _error_tables(each)
        retention = [
            (r.tower, "yes" if r.frozen else "no", f"{r.before:.4f}", f"{r.after:.4f}", _change(r))
            for r in scores.retention
        ]
        columns = ("tower", "frozen", "alone", "zipped", "change")
        tables.append(_table("Unimodal loss, nats per token", columns, retention))
    certificates: dict[str, Any] | None = folder.read_json("certificates.json")
    if certificates:
        proofs = [(c["name"], c["claim"], "holds" if c["passed"] else "FAILS") for c in certificates["certificates"]]
        tables.append(_table("Certificates", ("", "claim", ""), proofs))
    seconds = folder.read_json("seconds.json")
    if seconds:
        tables.append(_table("Time", ("phase", "seconds"), [(k, f"{v:.1f}") for k, v in seconds.items()]))
    return tables


def _error_tables(scores: Evaluated) -> list[Table]:
    """Word error rates on one split: of tasks that end in text, and of those that end in speech."""
    split, tables = scores.split, []
    if written := [(task.task, f"{task.wer_before:.1%}", f"{task.wer:.1%}") for task in scores.written]:
        tables.append(_table(f"Word error rate ({split})", ("task", "before", "after"), written))
    if spoken := [
        (task.task, task.scorer, *(f"{rate:.1%}" for rate in (task.wer, task.wer_target, task.wer_oracle)))
        for task in scores.spoken
    ]:
        columns = ("task", "scorer", "gold", "target", "oracle")
        tables.append(_table(f"Word error rate of speech ({split})", columns, spoken))
    if told := [(each.task, f"{each.accuracy:.1%}", str(each.n_segments)) for each in scores.next]:
        tables.append(_table(f"What comes next ({split})", ("task", "right", "segments"), told))
    return tables


def _change(row: Retention) -> str:
    return "0 exactly" if row.change == 0 else f"{row.change:+.4f}"


def size_tables(sizes: Sizes) -> list[Table]:
    """Return tables of sizes: parameters, operations, and the cache and memory that generation keeps."""
    rows = [_size_row(part) for part in (*sizes.parts, sizes.total)]
    tables = [_table("Parameters", ("part", "parameters", "trained", "weights"), rows)]
    columns = ("task", "tokens", "forward", "training")
    costs = [_cost_row(task) for task in sizes.tasks]
    tables.append(_table("Operations for each predicted token", columns, costs))
    kept = [(f"towers.{name}", f"{n:,} bytes") for name, n in sizes.cache.items()]
    kept += [(f"links.{name}", f"{n:,.0f} bytes") for name, n in sizes.memory.items()]
    tables.append(_table("Kept for each token (of a link's source) in generation", ("part", "bytes"), kept))
    return tables


def rank_tables(costs: Sequence[RankCost]) -> list[Table]:
    """Return tables of a predicted step: what each rank holds, and what it takes, for each task."""
    tables = []
    for task in dict.fromkeys(cost.task for cost in costs):
        own = [cost for cost in costs if cost.task == task]
        columns = ("ranks", "memory", "weights", "grads", "moments", "gathered", "kept", "casts", "logits")
        memory = [
            (str(c.ranks), *map(binary, (c.memory, *c.held, c.activations, c.casts, c.logits)))
            for c in own
        ]  # fmt: skip
        tables.append(_table(f"{task}: held by each rank", columns, memory))
        times = [
            (str(c.ranks), _between(c.least, c.most, 1e3), f"{1e3 * c.compute:.4g}", f"{1e3 * c.communication:.4g}",
             f"{1e3 * c.update:.4g}", binary(c.sent), str(sum(c.collectives.values())), _between(*c.tokens_per_second))
            for c in own
        ]  # fmt: skip
        head = ("ranks", "step, ms", "products", "wires", "update", "sent", "messages", "tokens/s")
        tables.append(_table(f"{task}: a step", head, times))
    return tables


def _between(least: float, most: float, times: float = 1.0) -> str:
    low, high = (f"{times * each:,.4g}" if times * each < 1e4 else f"{times * each:,.0f}" for each in (least, most))
    return low if low == high else f"{low} to {high}"


def _size_row(part: PartSize) -> tuple[str, ...]:
    return part.name, f"{part.parameters:,}", f"{part.trained:,}", binary(part.bytes)


def _cost_row(cost: TaskCost) -> tuple[str, ...]:
    tokens = ", ".join(f"{n} {name}" for name, n in cost.tokens.items()) + f"; {cost.predicted} predicted"
    if cost.forward is None or cost.training is None:
        return cost.task, tokens, "unknown", cost.problem
    return cost.task, tokens, *(f"{cost.per_token(n) / 1e9:,.4g} G" for n in (cost.forward, cost.training))


def binary(n_bytes: float) -> str:
    """Bytes in words: ``1.5 MiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:,.4g} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:,.4g} TiB"
