"""Rules by name pattern: which parameters of a tower are frozen, trained, or get an adapter."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from zippkit.errors import did_you_mean
from zippkit.spec.part_sections import Lora
from zippkit.spec.words import Action


def frozen_by(freeze: bool | Mapping[str, Action], names: Iterable[str]) -> dict[str, bool]:
    """Whether each parameter is frozen by a tower's `freeze`.

    Raises:
        ValueError: a rule matches nothing, or a parameter matches no rule or several; every case is named.
    """
    names = list(names)
    if isinstance(freeze, bool):
        return dict.fromkeys(names, freeze)
    rules = freeze
    matches = {name: [rule for rule in rules if fnmatch.fnmatchcase(name, rule)] for name in names}
    used = {rule for found in matches.values() for rule in found}
    wrong = [f"rule {rule!r} matches no parameter{did_you_mean(rule, names)}" for rule in rules if rule not in used]
    none = [name for name, found in matches.items() if not found]
    if none:
        wrong.append(f"no rule matches {_some(none)}; add a pattern for it")
    wrong += [
        f"{name!r} is matched by {len(m)} rules ({', '.join(m)}); expected one"
        for name, m in matches.items()
        if len(m) > 1
    ][:5]
    if wrong:
        raise ValueError("; ".join(wrong))
    return {name: rules[found[0]] != "train" for name, found in matches.items()}


def adapted_by(freeze: bool | dict[str, Action], lora: Lora | None, names: Iterable[str]) -> list[str]:
    """The weights that get an adapter by `freeze` and `lora`; `frozen_by` must not refuse the names.

    Raises:
        ValueError: nothing says which weights, a pattern matches none, or some are trained themselves.
    """
    frozen = frozen_by(freeze, names)
    rules = [] if isinstance(freeze, bool) else [r for r, action in freeze.items() if action == "lora"]
    patterns = [*rules, *(lora.patterns if lora else ())]
    if lora is not None and not patterns:
        raise ValueError("expected `pattern`, or `lora` as the action of a rule in `freeze`")
    matches = {pattern: [name for name in frozen if fnmatch.fnmatchcase(name, pattern)] for pattern in patterns}
    named = {name for names in matches.values() for name in names}
    found = [name for name in frozen if name in named]
    wrong = [f"pattern {p!r} matches no parameter{did_you_mean(p, frozen)}" for p in patterns if not matches[p]]
    trained = [name for name in found if not frozen[name]]
    if trained:
        wrong.append(f"{_some(trained)} is trained itself; freeze what adapters are for")
    if wrong:
        raise ValueError("; ".join(wrong))
    return found


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
