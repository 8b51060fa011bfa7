"""One evaluation on the dev splits: losses, word errors, and what each tower keeps of its own modality."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from zippkit.batch.batch import Batch
from zippkit.composition import Composition
from zippkit.data.normalize import word_error_rate
from zippkit.model.economy import SCORES
from zippkit.model.inference import inference
from zippkit.training.answers import answers
from zippkit.training.dev_data import DevData, DevTask

Tell = Callable[[str], None]
"""Is called with how far the evaluation is, in words."""
Given = Callable[[Batch], Batch]
"""Gives a batch (on the CPU) the states of frozen towers that are known (`zippkit.training.source_cache`)."""


def dev_scores(
    zipped: Composition, dev: DevData, tell: Tell = lambda said: None, given: Given = lambda batch: batch
) -> dict[str, float]:
    """Measure a composition that is being trained; it is left as it was, and nothing is drawn that training draws.

    Args:
        zipped: the composition.
        dev: what to measure.
        tell: is told how far it is.
        given: where the states of frozen towers are kept, if they are.

    Returns:
        By metric (`zippkit.training.dev_data.DevData.metrics`): nats per predicted token, or word errors over words;
        several tasks and datasets are counted together.
    """
    with _set_aside(zipped):
        found = _losses(zipped, dev, tell, given)
        found |= _word_errors(zipped, dev, tell)
        return found | _retention(zipped, dev, tell)


@contextmanager
def _set_aside(zipped: Composition) -> Iterator[None]:
    """Keep the mode of the model, and the state of everything that is drawn."""
    device = next(zipped.model.parameters()).device
    training = zipped.model.training
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            zipped.model.eval()
            yield
        finally:
            zipped.model.train(training)


class _Means:
    """Means by name, weighted by numbers of tokens."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, name: str, value: float, weight: int) -> None:
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + value * weight, count + weight

    def named(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self._sums.items() if count}


@inference()
def _losses(zipped: Composition, dev: DevData, tell: Tell, given: Given) -> dict[str, float]:
    means, device = _Means(), next(zipped.model.parameters()).device
    for each in dev.tasks:
        for start in range(0, each.n_examples, dev.how.batch_size):
            tell(f"{each.data.task} {start}/{each.n_examples}")
            examples = [each.data.segments(i) for i in _batch(each, start, dev.how.batch_size)]
            batch = given(zipped.collate(examples, multimodal=each.data.task.multimodal)).with_places().to(device)
            losses = zipped.loss(zipped.model(batch, SCORES), batch)
            counts = {name: int((tokens.targets >= 0).sum()) for name, tokens in batch.towers.items()}
            n_all = sum(counts.values())
            for name, loss in losses.items():
                means.add("loss" if name == "total" else f"{name}_loss", float(loss), counts.get(name, n_all))
    return means.named()


def _batch(each: DevTask, start: int, size: int) -> range:
    return range(start, min(start + size, each.n_examples))


def _word_errors(zipped: Composition, dev: DevData, tell: Tell) -> dict[str, float]:
    words: dict[str, tuple[list[str], list[str]]] = {}
    for each in dev.answered:
        if each.decode is not None:
            name, n = each.data.task.target, each.n_examples
            references, hypotheses = words.setdefault(f"{name}_wer", ([], []))
            references += [str(each.data.item(i, name)) for i in range(n)]
            told = f"{each.data.task}: answer"
            hypotheses += answers(
                *(zipped, each.data, each.decode, range(n), dev.how.batch_size, dev.how.max_tokens, {}),
                tell=lambda done, told=told, n=n: tell(f"{told} {done}/{n}"),  # type: ignore[misc]
            )
    return {name: word_error_rate(*pairs) for name, pairs in words.items()}


@inference()
def _retention(zipped: Composition, dev: DevData, tell: Tell) -> dict[str, float]:
    """Each tower's loss on its own modality, inside the composition and among its own ids."""
    means, device = _Means(), next(zipped.model.parameters()).device
    for each in dev.own:
        name = each.data.task.target
        for start in range(0, each.n_examples, dev.how.batch_size):
            tell(f"{name} alone {start}/{each.n_examples}")
            examples = [each.data.segments(i) for i in _batch(each, start, dev.how.batch_size)]
            batch = zipped.collate(examples, multimodal=False).to(device)
            logits = zipped.model(batch)[name][..., : zipped.model.tower(name).config.vocab_size]
            n_predicted = int((batch.towers[name].targets >= 0).sum())
            means.add(f"{name}_retention", float(zipped.loss({name: logits}, batch)[name]), n_predicted)
    return means.named()
