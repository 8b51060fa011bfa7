"""A task: which modality is predicted after which; and the tasks that follow from a spec."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple, Self

from zippkit.errors import ZippkitError, did_you_mean
from zippkit.spec.composition_spec import CompositionSpec


class Task(NamedTuple):
    """Predict one modality after others: written ``speech -> text``, or ``text`` for a tower's own modality.

    Modalities that are simultaneous (`clock: sync`) are predicted together: ``left + right``.
    """

    conditions: tuple[str, ...]
    target: str
    beside: str | None = None
    """A second target, predicted at the same time."""

    @classmethod
    def parse(cls, text: str) -> Self:
        *conditions, last = (part.strip() for part in text.split("->"))
        beside, plus, target = (part.strip() for part in last.rpartition("+"))
        return cls(tuple(conditions), target, beside if plus else None)

    def check(self, towers: Collection[str]) -> Self:
        """This task, if every modality is a tower.

        Raises:
            ZippkitError: names the one that is not.
        """
        for name in self.modalities:
            if name not in towers:
                raise ZippkitError(f"task {str(self)!r}: no tower is called {name!r}{did_you_mean(name, towers)}")
        return self

    def sees(self) -> set[tuple[str, str]]:
        """(target, source) pairs in which the target comes after the source."""
        order = self.modalities
        pairs = {(later, earlier) for i, later in enumerate(order) for earlier in order[:i] if earlier != later}
        return pairs | ({(self.beside, self.target)} if self.beside else set())

    @property
    def targets(self) -> tuple[str, ...]:
        """The modalities that are predicted."""
        return (self.beside, self.target) if self.beside else (self.target,)

    @property
    def modalities(self) -> tuple[str, ...]:
        return (*self.conditions, *self.targets)

    @property
    def multimodal(self) -> bool:
        """Whether its rows are declared multimodal, and so pass the input projections."""
        return len(set(self.modalities)) > 1

    def __str__(self) -> str:
        return " -> ".join((*self.conditions, " + ".join(self.targets)))


def unread(spec: CompositionSpec, task: Task) -> Iterator[str]:
    """Yield a message for each condition of a task that no link or contrastive loss lets a prediction depend on.

    A condition is read by a later modality of the task that is predicted, or is read itself.
    """
    towers = [spec.modalities.get(name) for name in task.modalities]
    if None in towers or len(set(task.modalities)) < len(task.modalities):
        return  # Told by themselves.
    joined = {(link.source, link.target) for link in spec.links} | {(tower, tower) for tower in towers}
    joined |= {pair for c in spec.contrastive for pair in ((c.source, c.target), (c.target, c.source))}
    n_given = len(task.conditions)
    read = list(range(n_given, len(towers)))
    for i in reversed(range(n_given)):
        if any((towers[i], towers[later]) in joined for later in read):
            read.append(i)
        else:
            name, target = task.modalities[i], " + ".join(task.targets)
            yield f"no link lets {target!r} depend on {name!r}; add a link from it, or leave it out of the task"
    pair = {towers[i] for i in range(n_given, len(towers))}
    if len(pair) > 1 and not any(link.clock == "sync" and {link.source, link.target} == pair for link in spec.links):
        yield f"`+` stands between simultaneous modalities; expected a link with `clock: sync` between {task.targets}"


def linked_tasks(spec: CompositionSpec) -> list[Task]:
    """One task for each linked direction, in spec order, and for each pair of modalities that one tower reads."""
    tasks = [
        Task((link.source,), link.target)
        if link.clock == "turns"
        else Task((), *sorted((link.source, link.target), reverse=True))
        for link in spec.links
    ]
    hosts = spec.modalities
    tasks += [Task((a,), b) for a in hosts for b in hosts if a != b and hosts[a] == hosts[b]]
    return list(dict.fromkeys(tasks))
