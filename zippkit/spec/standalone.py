"""A spec that needs no other file, and whether two specs are the same composition."""

from __future__ import annotations

from typing import Any

import yaml

from zippkit.spec.composition_spec import CompositionSpec


def standalone(spec: CompositionSpec) -> CompositionSpec:
    """The spec with every tower's config written out, without paths to weights and without places on ranks."""
    towers = {
        name: tower.model_copy(
            update={
                "config": tower.settings.model_dump(mode="json", exclude={"frame", "path"}),
                "weights": None,
                "place": None,
                "frame": tower.settings.frame,
            }
        )
        for name, tower in spec.towers.items()
    }
    return CompositionSpec.model_validate(_plain(spec.model_copy(update={"towers": towers})))


def spec_text(spec: CompositionSpec) -> str:
    """The standalone spec as YAML."""
    return str(yaml.safe_dump(_plain(standalone(spec)), sort_keys=False))


def _plain(spec: CompositionSpec) -> dict[str, Any]:
    """Plain data without what is not set.

    A null among a tower's settings is a value (no limit, no sliding window), and stays.
    """
    data = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    for name, tower in spec.towers.items():
        if "config" in data["towers"][name]:
            data["towers"][name]["config"] = tower.model_dump(mode="json")["config"]
    return data


def difference(there: CompositionSpec, here: CompositionSpec) -> str:
    """The first lines in which two specs differ; empty where they are the same composition."""
    old, new = spec_text(there).splitlines(), spec_text(here).splitlines()
    pairs = [(a, b) for a, b in zip(old, new, strict=False) if a != b]
    if pairs:
        return f"{pairs[0][0].strip()!r} there, {pairs[0][1].strip()!r} here"
    return "" if len(old) == len(new) else "towers or links are added or missing"
