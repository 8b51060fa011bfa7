"""What of a tower is frozen, trained or adapted, layer by layer: read from the spec's patterns, without any weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal, NamedTuple

from zippkit.spec.part_sections import Lora
from zippkit.spec.tower_spec import TowerSpec
from zippkit.spec.words import Action

Style = Literal["frozen", "trained", "partly"]
STEMS = ("layers", "layer", "h", "blocks", "block", "resblocks")
"""Last word before a layer's number in the names of its parameters, in the field's models."""
EMBEDDING = ("emb", "wte", "wpe")
HEAD = ("norm", "head", "ln_f", "lm_")


class LayerStyle(NamedTuple):
    """What becomes of one layer's weights."""

    style: Style
    adapted: bool = False
    """Some get low-rank adapters."""


class Freezing:
    """What a tower's spec says of its embedding, each layer and its head."""

    def __init__(self, spec: TowerSpec) -> None:
        self.spec = spec
        self.rules: dict[str, Action] = spec.freeze if isinstance(spec.freeze, dict) else {}
        adapters = (spec.lora or Lora()).patterns
        self.adapters = [*adapters, *(rule for rule, action in self.rules.items() if action == "lora")]

    @cached_property
    def stem(self) -> str:
        """Names of a layer's parameters begin with it and the layer's number: ``layers``, ``model.layers``."""
        for pattern in (*self.rules, *self.adapters):
            words = pattern.split(".")
            for i, word in enumerate(words[:-1]):
                if word in STEMS and not any(set(before) & set("*?[") for before in words[:i]):
                    return ".".join(words[: i + 1])
        return "layers"

    @property
    def whole(self) -> Style:
        """The tower as a whole."""
        return _style(set(self.rules.values())) if self.rules else ("frozen" if self.spec.freeze else "trained")

    def layer(self, depth: int) -> LayerStyle:
        """The layer that leads to ``depth``, from 1."""
        prefix = f"{self.stem}.{depth - 1}."
        adapted = any(begins(pattern, prefix) for pattern in self.adapters)
        if not self.rules:
            return LayerStyle(self.whole, adapted)
        actions = {action for rule, action in self.rules.items() if begins(rule, prefix)}
        return LayerStyle(_style(actions) if actions else self.whole, adapted)

    def end(self, words: Sequence[str]) -> Style:
        """The embedding or the head: what is said of names with one of these words, or of all that are no layer's."""
        others = {rule: action for rule, action in self.rules.items() if not rule.startswith(f"{self.stem}.")}
        named = {action for rule, action in others.items() if any(word in rule for word in words)}
        found = named or set(others.values())
        return _style(found) if found else self.whole


def _style(actions: set[Action]) -> Style:
    kept = {action == "train" for action in actions}
    return "partly" if len(kept) > 1 else ("trained" if kept == {True} else "frozen")


def begins(pattern: str, prefix: str) -> bool:
    """Whether some name that begins with ``prefix`` matches a pattern of `fnmatch`."""
    left = {pattern}
    for letter in prefix:
        left = {rest for each in left for rest in _after(each, letter)}
    return bool(left)


def _after(pattern: str, letter: str) -> Iterator[str]:
    """What may be left of a pattern once it has matched a letter."""
    if pattern.startswith("*"):
        yield pattern
        yield from _after(pattern[1:], letter)
    elif pattern.startswith("[") and (end := pattern.find("]", 2)) > 0:
        if fnmatchcase(letter, pattern[: end + 1]):
            yield pattern[end + 1 :]
    elif pattern and pattern[0] in {letter, "?"}:
        yield pattern[1:]
