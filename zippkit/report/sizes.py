"""How large a composition is and what it costs, from shapes alone: no weights are needed, and none are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zippkit.batch.batch import IGNORE, Batch, Segment, TowerBatch
from zippkit.batch.collate import collate
from zippkit.errors import DataError, ZippkitError
from zippkit.model.meta_device import meta_model
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.graph import Graph, LinkSite
from zippkit.plan.parts import part_of
from zippkit.report.flops import CountFlops
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.task import Task, linked_tasks

SOURCE_TOKENS, TARGET_TOKENS = 256, 64


@dataclass(frozen=True)
class PartSize:
    """A tower, its input projection, adapters or added vocabulary, a link, or a contrastive loss."""

    name: str
    """The first two parts of its tensors' names, such as ``links.speech_to_text``."""
    parameters: int
    """Shared parameters count for the first part that has them."""
    trained: int
    """Parameters that are not frozen."""
    bytes: int
    """Parameters and buffers, as they are built."""
    trained_bytes: int
    """Bytes of the trained parameters."""


@dataclass(frozen=True)
class TaskCost:
    """Floating-point operations of one example of a task; a multiplication and its addition are two."""

    task: str
    tokens: Mapping[str, int]
    """Tokens of each tower, including begin and end ids and inserted positions."""
    predicted: int
    """Tokens that are predicted."""
    forward: int | None = None
    training: int | None = None
    """Forward and backward; what is frozen needs no gradient of its weights."""
    problem: str = ""
    """Why the two are not known: a tower or a link computes its shapes from values."""

    def per_token(self, operations: int) -> float:
        """Operations for each predicted token."""
        return operations / self.predicted


@dataclass(frozen=True)
class Sizes:
    """Sizes of a composition."""

    parts: tuple[PartSize, ...]
    tasks: tuple[TaskCost, ...]
    cache: Mapping[str, int]
    """Bytes that each tower that generates keeps for each of its tokens."""
    memory: Mapping[str, float]
    """Bytes that all sites of each link keep for each token of their source."""

    @property
    def total(self) -> PartSize:
        """All parts together."""
        keys = ("parameters", "trained", "bytes", "trained_bytes")
        return PartSize("total", *(sum(getattr(part, key) for part in self.parts) for key in keys))

    @property
    def training_bytes(self) -> int:
        """Weights, gradients and Adam's two moments, in the precision of the weights; without activations."""
        return self.total.bytes + 3 * self.total.trained_bytes

    def as_json(self) -> dict[str, Any]:
        """Plain data, totals included."""
        return {**asdict(self), "total": asdict(self.total), "training_bytes": self.training_bytes}


class _Lengths(NamedTuple):
    """Tokens of a segment, without begin and end."""

    source: int
    target: int


def sizes(
    spec: CompositionSpec,
    tasks: Sequence[str] | None = None,
    source_tokens: int | None = None,
    target_tokens: int | None = None,
) -> Sizes:
    """Parameters, bytes and operations of a composition, counted on a model without values that really runs.

    Args:
        spec: the composition; its weights need not be there.
        tasks: such as ``speech -> text``; every linked direction if left out.
        source_tokens: length of each given segment; 256, or what the towers take, if left out.
        target_tokens: length of each predicted segment; 64, or what the towers take, if left out.

    Raises:
        SpecError: everything that is wrong with the spec.
        ZippkitError: a task that is none.
        DataError: lengths that a tower does not take.
    """
    model, graph = meta_model(spec)
    model.train()
    named = _named(spec, graph, tasks)
    lengths = _Lengths(source_tokens or SOURCE_TOKENS, target_tokens or TARGET_TOKENS)
    fixed = source_tokens is not None or target_tokens is not None
    return Sizes(
        part_sizes(model),
        tuple(_cost(model, graph, task, lengths, fixed) for task in named),
        cache_bytes(model, graph),
        memory_bytes(model, graph, lengths.source, fixed),
    )


def example_batches(
    spec: CompositionSpec,
    tasks: Sequence[str] | None = None,
    source_tokens: int | None = None,
    target_tokens: int | None = None,
) -> tuple[ZippedModel, dict[str, Batch]]:
    """The model without values, and for each task a batch of one example, as `sizes` counts them."""
    model, graph = meta_model(spec)
    model.train()
    lengths = _Lengths(source_tokens or SOURCE_TOKENS, target_tokens or TARGET_TOKENS)
    fixed = source_tokens is not None or target_tokens is not None
    return model, {str(task): _batch(graph, task, lengths, fixed) for task in _named(spec, graph, tasks)}


def _named(spec: CompositionSpec, graph: Graph, tasks: Sequence[str] | None) -> list[Task]:
    return _tasks(spec, graph) if tasks is None else [Task.parse(text).check(graph.modalities) for text in tasks]


def _tasks(spec: CompositionSpec, graph: Graph) -> list[Task]:
    """Every linked direction; each tower's own modality where nothing is linked."""
    tasks = linked_tasks(spec) or [Task((), name) for name in spec.towers]
    return [task for task in tasks if all(graph.readers[name].predicts for name in task.targets)]


def part_sizes(model: ZippedModel) -> tuple[PartSize, ...]:
    """The size of each part of a model."""
    found: dict[str, dict[str, int]] = {}
    for name, tensor in _tensors(model):
        size = found.setdefault(part_of(name), dict.fromkeys(("parameters", "trained", "bytes", "trained_bytes"), 0))
        size["bytes"] += tensor.nbytes
        if isinstance(tensor, nn.Parameter):
            size["parameters"] += tensor.numel()
            size["trained"] += tensor.numel() * tensor.requires_grad
            size["trained_bytes"] += tensor.nbytes * tensor.requires_grad
    return tuple(PartSize(name, **size) for name, size in found.items())


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def cache_bytes(model: ZippedModel, graph: Graph) -> dict[str, int]:
    """Bytes of one slot of each generating tower's cache; towers without a cache are left out."""
    found: dict[str, int] = {}
    for name, config in graph.towers.items():
        if config.causal and config.predicts:
            try:
                with CountFlops():
                    found[name] = n_bytes(model.tower(name).new_cache(1, 1))
            except NotImplementedError:
                continue
    return found


def n_bytes(state: Any) -> int:
    """Bytes of every tensor inside lists, mappings and plain objects; the same tensor counts once."""
    tensors: dict[int, Tensor] = {}
    seen: set[int] = set()
    left = [state]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            tensors[id(each)] = each
        elif isinstance(each, Mapping):
            left.extend(each.values())
        elif isinstance(each, (list, tuple, set)):
            left.extend(each)
        elif not isinstance(each, (type, nn.Module)):
            left.extend(vars(each).values() if hasattr(each, "__dict__") else ())
    return sum(tensor.nbytes for tensor in tensors.values())


def memory_bytes(model: ZippedModel, graph: Graph, n_tokens: int, fixed: bool) -> dict[str, float]:
    """Bytes that each link keeps for each token of a source segment of so many."""
    lengths, found = _Lengths(n_tokens, n_tokens), dict[str, float]()
    sources = {
        name: _batch(graph, Task((), name), lengths, fixed).to("meta").towers[name]
        for name in dict.fromkeys(site.source for site in graph.sites)
    }
    for site in graph.sites:
        tokens = sources[site.source]
        with torch.no_grad(), CountFlops():
            memory = model.link(site).write(_states(graph, site, tokens), tokens)
        found[site.link] = found.get(site.link, 0) + n_bytes(memory) / tokens.tokens.shape[1]
    return found


def _states(graph: Graph, site: LinkSite, tokens: TowerBatch) -> Tensor:
    """Return (B, T, D) states of the source without values, as a site's ``write`` takes them."""
    source = graph.towers[site.source]
    inside = source.shared_attention if site.acts == "attention" else None
    width = (source.dim,) if inside is None else (2, inside.n_kv_heads, inside.head_width)
    return torch.empty(*tokens.tokens.shape, *width, device="meta")


def _cost(model: ZippedModel, graph: Graph, task: Task, lengths: _Lengths, fixed: bool) -> TaskCost:
    batch = _batch(graph, task, lengths, fixed)
    n_predicted = sum(int((tokens.targets != IGNORE).sum()) for tokens in batch.towers.values())
    if not n_predicted:
        raise ZippkitError(f"task {str(task)!r}: {task.target!r} reads waveforms or pixels, so it is not predicted")
    tokens = {name: tower.tokens.shape[1] for name, tower in batch.towers.items()}
    try:
        forward, training = count(model, batch.to("meta"))
    except RuntimeError as error:
        return TaskCost(str(task), tokens, n_predicted, problem=str(error).splitlines()[0])
    return TaskCost(str(task), tokens, n_predicted, forward, training)


def count(model: ZippedModel, batch: Batch) -> tuple[int, int]:
    """Operations of a forward pass, and of it and its backward pass."""
    with CountFlops() as counted:
        logits = [each for each in model(batch).values() if each.requires_grad]
        forward = counted.total
        if logits:
            # Any scalar of them does; nothing of a loss is a matrix product.
            torch.stack([each.sum() for each in logits]).sum().backward()  # type: ignore[no-untyped-call]
    return forward, counted.total


def _batch(graph: Graph, task: Task, lengths: _Lengths, fixed: bool) -> Batch:
    """Make a batch of one example, shortened to what the towers take unless its lengths are fixed."""
    given = [_segment(graph, name, lengths.source, fixed, loss=False) for name in task.conditions]
    wanted = [_segment(graph, name, lengths.target, fixed, loss=True) for name in task.targets]
    try:
        ids, multimodal = [str(task)], task.multimodal
        return collate([[*given, *wanted]], graph.towers, ids=ids, layout=graph.layout, multimodal=multimodal)
    except DataError:
        if fixed or max(lengths) == 1:
            raise
        shorter = _Lengths(*(max(1, n * 3 // 4) for n in lengths))
        return _batch(graph, task, shorter, fixed)


def _segment(graph: Graph, name: str, n_tokens: int, fixed: bool, loss: bool) -> Segment:
    config = graph.readers[name]
    if config.continuous:
        return Segment(name, config.example_inputs(n_tokens, seed=0))
    longest = n_tokens if fixed or config.max_len is None else max(1, min(n_tokens, config.max_len - 2))
    return Segment(name, [0] * longest, loss=loss)
