"""Checks a spec that has wrong keys or types: what stands in for them, and which complaints only follow from that."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from typing import Any

from zippkit.spec.shared_weights import SHARED_KEYS
from zippkit.spec.validation import value_at
from zippkit.spec.yaml_document import KeyPath

_NEEDED: dict[KeyPath, Any] = {
    ("name",): "x",
    ("towers",): {"x": {"kind": "?"}},
    ("towers", "*"): {"kind": "?"},
    ("towers", "*", "kind"): "?",
    ("towers", "*", "extend_vocabulary", "*"): 2,
    ("towers", "*", "extend_vocabulary", "*", "size"): 2,
    ("links", "*"): {"kind": "?", "from": "", "into": ""},
    ("links", "*", "kind"): "?",
    ("links", "*", "from"): "",
    ("links", "*", "into"): "",
    ("contrastive", "*", "from"): "",
    ("contrastive", "*", "into"): "",
    ("data",): "x",
    ("train",): {"steps": 1},
    ("train", "steps"): 1,
    ("train", "*", "steps"): 1,
    ("pretrain", "*", "steps"): 1,
    ("data", "*", "path"): "x",
}
"""Stand-ins for wrong values of a spec or a recipe, so that the rest of their section can be checked.

Nothing is said about a stand-in.
"""


def stand_in(key_path: KeyPath) -> Any:
    """A sound value for a wrong one, such as a name that its section needs; None where it is cut out instead."""
    if key_path[2:] == ("name",):
        return f"x{key_path[1]}"
    for needed, value in _NEEDED.items():
        if len(needed) == len(key_path) and all(
            part in ("*", seen) for part, seen in zip(needed, key_path, strict=True)
        ):
            return deepcopy(value)
    return None


_ALSO = {"freeze": "lora", "weights": "config"}
"""Where the one key of a tower was cut, what is said about the other follows."""


def follows_from(key_path: KeyPath, cuts: Collection[KeyPath], data: Any) -> bool:
    """Whether a complaint speaks of a name, a clock or a rule that is only gone because it was cut."""
    if len(key_path) == 3 and key_path[2] == "clock":
        return any(cut[2:] == ("clock",) for cut in cuts)
    if key_path[-1:] in (("from",), ("into",), ("share_with",)):
        return ("towers",) in cuts or ("towers", value_at(data, key_path)) in cuts
    return any(
        len(cut) == 3 and cut[:2] == key_path[:2] and _ALSO.get(str(cut[2])) == key_path[2]
        for cut in cuts
        if key_path[2:]
    )


def inherited(key_path: KeyPath, data: Any) -> bool:
    """Whether it is said about what a tower has from another one, where it is said too."""
    tower = value_at(data, key_path[:2])
    shares = key_path[:1] == ("towers",) and isinstance(tower, dict) and isinstance(tower.get("share_with"), str)
    return shares and len(key_path) > 2 and key_path[2] in SHARED_KEYS and key_path[2] not in tower
