"""A task's answers in words: what a composition generates after each example's prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from zippkit.composition import Composition
from zippkit.generation.api import generate_batch
from zippkit.spec.sampling import Sampling
from zippkit.training.task_data import TaskData


def answers(
    zipped: Composition,
    data: TaskData,
    decode: Callable[[Sequence[int]], str],
    indices: Sequence[int],
    batch_size: int,
    max_tokens: int,
    sampling: Mapping[str, Sampling],
    tell: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Answer some examples of a task that ends in text; the model is left in evaluation mode.

    Args:
        zipped: who answers.
        data: the task.
        decode: ids of its target to text.
        indices: of the examples.
        batch_size: examples decoded together.
        max_tokens: longest answer.
        sampling: how tokens are chosen, by modality; greedily where it names none.
        tell: is called with the number of answers so far.
    """
    task, found = data.task, list[str]()
    for start in range(0, len(indices), batch_size):
        prompts = [data.prompt(i) for i in indices[start : start + batch_size]]
        rows = generate_batch(zipped, prompts, task.generated, max_tokens, sampling, start, task.multimodal)
        found += [decode(row[-1].tokens) for row in rows]
        tell(len(found))
    return found
