"""A task: which modalities are predicted after which; and the tasks that follow from a spec."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple, Self

from zippkit.errors import ZippkitError, did_you_mean
from zippkit.spec.composition_spec import CompositionSpec

INTERLEAVED = "interleaved"
"""The task that takes documents as they stand: segments of any modality, in any order and number."""


class Task(NamedTuple):
    """Predict modalities after others: written ``speech -> text``, or ``text`` for a tower's own modality.

    Several targets are predicted in sequence, ``speech -> [text, speech]``, or where they are simultaneous
    (`clock: sync`) together: ``left + right``. ``interleaved`` is every segment of a document.
    """

    conditions: tuple[str, ...]
    target: str
    """The last that is predicted."""
    beside: str | None = None
    """A second target, predicted at the same time."""
    before: tuple[str, ...] = ()
    """Targets that are predicted before it, one after the other."""

    @classmethod
    def parse(cls, text: str) -> Self:
        *conditions, last = (part.strip() for part in text.split("->"))
        if last.startswith("[") and last.endswith("]"):
            *before, target = (part.strip() for part in last[1:-1].split(","))
            return cls(tuple(conditions), target, None, tuple(before))
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
    def interleaved(self) -> bool:
        """Whether it takes documents, whose modalities are not known before they are read."""
        return self == ((), INTERLEAVED, None, ())

    @property
    def targets(self) -> tuple[str, ...]:
        """The modalities that are predicted, in order."""
        if self.interleaved:
            return ()
        return (self.beside, self.target) if self.beside else (*self.before, self.target)

    @property
    def beginnings(self) -> tuple[Self, ...]:
        """For each target of a sequence the task that ends with it, the whole task last."""
        kind, names = type(self), self.targets
        return (*(kind(self.conditions, names[i], None, names[:i]) for i in range(len(self.before))), self)

    @property
    def generated(self) -> list[str]:
        """What is generated after the conditions to get the target."""
        return [*self.before, self.target]

    @property
    def modalities(self) -> tuple[str, ...]:
        """Everything that an example needs, in order; nothing in particular for documents."""
        return (*self.conditions, *self.targets)

    @property
    def repeated(self) -> list[str]:
        """Targets that the example gives already where they are to be predicted.

        An example has one item of each modality. It may be said again at the end of a sequence, once something else was
        predicted: ``speech -> [text, speech]`` hears, writes down, and says again.
        """
        first, *later = self.targets or ("",)
        again = [first] if first in self.conditions else []
        if self.beside:
            again += [name for name in later if name in (*self.conditions, first)]
        return list(dict.fromkeys([*again, *(name for name in self.targets if self.targets.count(name) > 1)]))

    @property
    def multimodal(self) -> bool:
        """Whether its rows are declared multimodal, and so pass the input projections."""
        return self.interleaved or len(set(self.modalities)) > 1

    def __str__(self) -> str:
        last = f"[{', '.join(self.targets)}]" if self.before else " + ".join(self.targets) or self.target
        return " -> ".join((*self.conditions, last))


def unread(spec: CompositionSpec, task: Task) -> Iterator[str]:
    """Yield a message for each condition of a task that no link or contrastive loss lets a prediction depend on.

    A condition is read by a later modality of the task that is predicted, or is read itself.
    """
    towers = [spec.modalities.get(name) for name in task.modalities]
    if None in towers or task.repeated or len(set(task.conditions)) < len(task.conditions):
        return  # Told by themselves.
    joined = {(link.source, link.target) for link in spec.links} | {(tower, tower) for tower in towers}
    joined |= {pair for c in spec.contrastive for pair in ((c.source, c.target), (c.target, c.source))}
    n_given = len(task.conditions)
    read = list(range(n_given, len(towers)))
    for i in reversed(range(n_given)):
        if any((towers[i], towers[later]) in joined for later in read):
            read.append(i)
        else:
            name, target = task.modalities[i], (" + " if task.beside else ", ").join(task.targets)
            yield f"no link lets {target!r} depend on {name!r}; add a link from it, or leave it out of the task"
    pair = {towers[i] for i in range(n_given, len(towers))} if task.beside else set()
    if len(pair) > 1 and not any(link.clock == "sync" and {link.source, link.target} == pair for link in spec.links):
        yield f"`+` stands between simultaneous modalities; expected a link with `clock: sync` between {task.targets}"


def linked_tasks(spec: CompositionSpec) -> list[Task]:
    """One task for each linked direction, in spec order, and for each pair of modalities that one tower reads."""
    tasks = [
        Task((link.source,), link.target)
        if link.clock == "turns"
        else Task((), max(link.source, link.target), min(link.source, link.target))
        for link in spec.links
    ]
    hosts = spec.modalities
    tasks += [Task((a,), b) for a in hosts for b in hosts if a != b and hosts[a] == hosts[b]]
    return list(dict.fromkeys(tasks))
