"""Commands that list what is installed, and what YAML may say."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer

from zippkit.cli.options import AsJson


def towers(as_json: AsJson = False) -> None:
    """List the registered kinds of tower and the package that each comes from.

    Example: zippkit towers --json
    """
    _list_kinds("zippkit.towers", as_json)


def links(as_json: AsJson = False) -> None:
    """List the registered kinds of link and the package that each comes from.

    Example: zippkit links --json
    """
    _list_kinds("zippkit.links", as_json)


def scorers(as_json: AsJson = False) -> None:
    """List the registered kinds of scorer (judges of generated speech) and the package that each comes from.

    Example: zippkit scorers --json
    """
    _list_kinds("zippkit.scorers", as_json)


def readers(as_json: AsJson = False) -> None:
    """List the registered kinds of reader (corpora that `zippkit prepare` takes) and the package that each comes from.

    Example: zippkit readers --json
    """
    _list_kinds("zippkit.readers", as_json)


def trackers(as_json: AsJson = False) -> None:
    """List the registered kinds of tracker (whom a recipe's `track` tells metrics) and the package of each.

    Example: zippkit trackers --json
    """
    _list_kinds("zippkit.trackers", as_json)


def _list_kinds(
    group: Literal["zippkit.towers", "zippkit.links", "zippkit.scorers", "zippkit.readers", "zippkit.trackers"],
    as_json: bool,
) -> None:
    from zippkit.spec.registry import kinds

    found = kinds(group)
    if as_json:
        print(json.dumps([{"kind": k.name, "package": k.package, "class": k.value} for k in found], indent=2))
    else:
        for kind in found:
            print(f"{kind.name:<24} {kind.package:<16} {kind.value}")


def schema(
    what: Annotated[Literal["spec", "recipe", "experiment"], typer.Argument(help="Which YAML.")] = "spec",
) -> None:
    """Print the JSON Schema of a spec, a recipe or an experiment, for editors.

    Example: zippkit schema spec > zippkit-spec.json
    """
    from zippkit.spec.composition_spec import CompositionSpec
    from zippkit.spec.recipe import Recipe
    from zippkit.spec.schema import json_schema

    model: Any = CompositionSpec if what == "spec" else Recipe
    if what == "experiment":
        from zippkit.experiment.format import Experiment

        model = Experiment
    print(json.dumps(json_schema(model), indent=2))
