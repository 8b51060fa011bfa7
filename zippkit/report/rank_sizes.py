"""What a training step takes on each of many ranks, predicted from sizes alone: bytes held, bytes sent, seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from zippkit.batch.batch import Batch
from zippkit.model.zipped_model import ZippedModel
from zippkit.report.activations import saved_bytes
from zippkit.report.division import Division, Held, Message, held, messages, units_of, uses
from zippkit.report.hardware import Hardware
from zippkit.report.sizes import count, example_batches
from zippkit.spec.composition_spec import CompositionSpec

BF16_KEEPS = 0.6
"""Bytes that autocast keeps for the backward pass, against float32 (docs/scale.md tells what was measured)."""
MOMENTS = {"adam": 2, "adamw": 2, "adafactor": 0}
UPDATE = 7
"""Times that the optimiser reads or writes a trained number: weight, gradient and two moments read, three written."""


@dataclass(frozen=True)
class Step:
    """How a step is run."""

    rows: int = 8
    """Of each rank."""
    n_parts: int = 1
    """Batches that they are run in, one after the other."""
    precision: Literal["fp32", "bf16"] = "bf16"
    narrow: bool = False
    """Trained weights are brought together in bfloat16."""
    optimizer: str = "adam"
    recompute: bool = False
    logits_mib: int = 64
    efficiency: float = 0.4
    """Part of the hardware's operations that products reach."""


@dataclass(frozen=True)
class RankCost:
    """One task on so many ranks."""

    task: str
    ranks: int
    held: Held
    activations: int
    casts: int
    """bf16 copies of float32 weights that autocast keeps for the backward pass, whole whatever is held in parts."""
    logits: int
    operations: float
    """Of each rank in a step; a multiplication and its addition are two."""
    sent: float
    """Bytes that each rank sends, and receives."""
    collectives: Mapping[str, int]
    compute: float
    """Seconds of products."""
    communication: float
    """Seconds of collectives, if nothing else ran."""
    update: float
    """Seconds of the optimiser."""
    tokens: int
    """Of all ranks in a step, of every tower."""

    @property
    def memory(self) -> int:
        """Bytes on the rank that holds most, at the end of its forward pass."""
        return sum(self.held) + self.activations + self.casts + self.logits

    @property
    def least(self) -> float:
        """Seconds of a step whose collectives run behind its products."""
        return max(self.compute, self.communication) + self.update

    @property
    def most(self) -> float:
        """Seconds of a step in which one waits for the other."""
        return self.compute + self.communication + self.update

    @property
    def tokens_per_second(self) -> tuple[float, float]:
        """Of all ranks: the fewest and the most."""
        return self.tokens / self.most, self.tokens / self.least

    def as_json(self) -> dict[str, Any]:
        """Plain data, sums included."""
        more = {"memory": self.memory, "seconds": [self.least, self.most], "tokens_per_second": self.tokens_per_second}
        return {**asdict(self), "held": self.held._asdict(), **more}


def rank_sizes(
    spec: CompositionSpec,
    divisions: Sequence[Division],
    hardware: Hardware,
    step: Step | None = None,
    tasks: Sequence[str] | None = None,
    source_tokens: int | None = None,
    target_tokens: int | None = None,
) -> list[RankCost]:
    """Predict a training step on several numbers of ranks; see docs/scale.md for what is assumed.

    Args:
        spec: the composition; its weights need not be there.
        divisions: among ranks.
        hardware: of each rank.
        step: how it is run.
        tasks: as `zippkit.report.sizes.sizes` takes them.
        source_tokens: likewise.
        target_tokens: likewise.

    Raises:
        SpecError: everything that is wrong with the spec.
        ZippkitError: a task that is none, or whose shapes depend on values.
    """
    model, batches = example_batches(spec, tasks, source_tokens, target_tokens)
    found: list[RankCost] = []
    for task, batch in batches.items():
        told = _Task(task, model, batch, step or Step())
        found += [told.on(division, hardware) for division in divisions]
    return found


class _Task:
    """What of a task does not depend on the ranks."""

    def __init__(self, name: str, model: ZippedModel, batch: Batch, step: Step) -> None:
        self.name, self.step = name, step
        self.model, self.plan = model, model.plan.prune(model.wanted(batch))
        self.n_tokens = sum(tower.tokens.numel() for tower in batch.towers.values())
        self.n_logits = sum(
            batch.towers[name].tokens.numel() * (model.tower(name).config.vocab_size or 0) for name in batch.outputs
        )
        on_meta = batch.to("meta")
        self.operations = count(model, on_meta)[1]
        recompute = frozenset(model.towers) if step.recompute else frozenset[str]()
        self.saved = saved_bytes(model, on_meta, recompute)
        if step.recompute:
            # Layers and links run forward once more, which is about all of the forward pass.
            self.operations += count(model, on_meta)[0]

    def on(self, division: Division, hardware: Hardware) -> RankCost:
        step, wide = self.step, 2 if self.step.narrow else 4
        units = units_of(self.model, division)
        have = held(units, division, wide, MOMENTS[step.optimizer])
        sent = list(messages(units, uses(self.model, self.plan, units), division, wide, step.n_parts))
        rows_at_once = -(-step.rows // step.n_parts)
        operations = float(self.operations * step.rows)
        return RankCost(
            task=self.name,
            ranks=division.ranks,
            held=have,
            activations=int(self.saved * rows_at_once * (BF16_KEEPS if step.precision == "bf16" else 1)),
            casts=self._casts(),
            # A table of logits, and its gradient.
            logits=2 * min(step.logits_mib * 2**20, self.n_logits * rows_at_once * 4),
            operations=operations,
            sent=sum(each.sent for each in sent),
            collectives=dict(Counter(each.kind for each in sent)),
            compute=operations / (_rate(hardware, step) * step.efficiency),
            communication=sum(_seconds(each, division, hardware) for each in sent),
            update=UPDATE * have.gradients / hardware.memory_rate,
            tokens=self.n_tokens * step.rows * division.ranks,
        )

    def _casts(self) -> int:
        if self.step.precision != "bf16":
            return 0
        wide = (p for p in self.model.parameters() if p.dim() > 1 and p.element_size() == 4)
        return sum(2 * p.numel() for p in wide if not (self.step.narrow and p.requires_grad))


def _rate(hardware: Hardware, step: Step) -> float:
    # Without bfloat16, matrix units run in TF32 at best, at half the rate.
    return hardware.operations if step.precision == "bf16" else hardware.operations / 2


def _seconds(message: Message, division: Division, hardware: Hardware) -> float:
    """Between replicas, and wherever a ring leaves its node, the network is the slowest of its wires."""
    among_replicas = message.kind == "all_reduce" and division.replicas > 1
    inside = not among_replicas and message.over <= hardware.node
    return hardware.latency + message.sent / (hardware.link_rate if inside else hardware.network_rate)
