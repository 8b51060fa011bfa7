"""Write what is generated under docs/: a diagram of every spec under recipes/, and the spec reference.

python docs/generate.py            writes the files, and removes diagrams of specs that are gone
python docs/generate.py --check    names the files that are stale, and exits with 1 if there are any
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, StringConstraints
from pydantic.fields import FieldInfo

from zippkit.errors import ZippkitError
from zippkit.loading import check_spec, spec_of
from zippkit.plan.diagram.diagram import mermaid, svg
from zippkit.plan.graph import build_graph
from zippkit.spec import registry
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.inheritance import read_yaml
from zippkit.spec.yaml_document import KeyPath

ROOT = Path(__file__).parents[1]
BUILT_IN = tuple(
    (group, kind.name)
    for group in (registry.TOWERS, registry.LINKS)
    for kind in registry.kinds(group)
    if kind.package == "zippkit"
)

INTRODUCTION = """\
<!-- Written by docs/generate.py; change the models in zippkit/spec/, or that file. -->
# The composition spec

A composition spec is a YAML file that says which towers there are, which layers of one read which layers of another,
what is frozen, and what the links look like. `zippkit check SPEC` reports everything that is wrong with one, with file,
line and key; `zippkit diagram SPEC -o spec.svg` draws it.

Depth counts layers: 0 is the embedding (after the input projection, if there is one), `n_layers` the last layer's
output. A link reads a source as it was before any link rewrote it at that depth, so two towers may read each other at
the same depth. Several links into one site act in the order of the file. Links that wait for each other in a circle are
an error.

Unknown keys, duplicate keys and converted types (`"3"` for `3`) are errors. A *name* is made of lower-case letters,
digits and underscores, and starts with a letter.

Editors complete and check while you write: `zippkit schema spec > zippkit-spec.json` writes a JSON Schema that knows
the installed kinds and what each one's `config` may hold; `# yaml-language-server: $schema=zippkit-spec.json` in the
file's first line names it.

A spec or a recipe that begins with `base: other.yaml` says only in what it differs from that file: mappings are merged
key by key, anything else (lists too) replaces the base's value, `null` takes a key out, and a tower or link of another
`kind` replaces the base's whole. Paths in a base are looked up beside it, and a mistake is told with the file and line
where it stands. In a recipe with a `base`, `spec: {towers: {text: {freeze: false}}}` changes the base's composition.
"""

EXAMPLE = """\
name: example
towers:
  text:
    kind: decoder
    config: {vocab_size: 32000, dim: 768, n_layers: 12, n_heads: 12, frame: {begin: 1, end: 2}}
    # weights: runs/text           # a folder of pre-trained weights tells its config too
    freeze: true
    input_projection: {depth: 2, activation: relu}
  speech:
    kind: decoder
    config: {vocab_size: 1026, dim: 512, n_layers: 8, n_heads: 8}
    frame: {begin: 1024, end: 1025}
    freeze:                        # every parameter matches exactly one pattern
      "layers.*": freeze
      embed_tokens.weight: train
      norm.weight: train
links:
  - {kind: gated_cross_attention, from: speech, into: text, every: 3, source_every: 2,
     projection: {depth: 3, width: 512}, config: {n_heads: 8}}
  - {kind: gated_cross_attention, from: text, into: speech, sites: [{from: 6, into: 4}, {from: 12, into: 8}]}
"""


def documents(root: Path) -> dict[Path, str]:
    """Every generated file and what belongs into it.

    Raises:
        ZippkitError: a spec that cannot be drawn, or two that would share a file.
    """
    spec, complaints = check_spec(yaml.safe_load(EXAMPLE))
    if spec is None or complaints:
        raise ZippkitError(f"the example in docs/generate.py: {complaints}")
    specs = {"example": spec}
    for name, found in _specs(root / "recipes"):
        if name in specs:
            raise ZippkitError(f"two specs would be drawn as docs/diagrams/{name}.svg; rename one")
        specs[name] = found
    pages = {root / "docs" / "spec.md": _reference()}
    for name, spec in specs.items():
        graph = build_graph(spec)
        pages[root / "docs" / "diagrams" / f"{name}.svg"] = svg(spec, graph)
        pages[root / "docs" / "diagrams" / f"{name}.mmd"] = mermaid(spec, graph)
    return pages


def _specs(folder: Path) -> Iterator[tuple[str, CompositionSpec]]:
    """Every spec, whether a file of its own or inside a recipe, by its path with dashes."""
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        document = read_yaml(path)
        places: list[KeyPath] = [(), ("spec",)]
        for place in places:
            data = document.data.get("spec") if place else document.data
            if isinstance(data, dict) and "towers" in data:
                _forget_missing_weights(data, path)
                yield "-".join(path.relative_to(folder).with_suffix("").parts), spec_of(document, place)


def _forget_missing_weights(data: dict[str, Any], path: Path) -> None:
    """A tower whose config is written down can be drawn before it is trained."""
    for tower in data["towers"].values() if isinstance(data["towers"], dict) else ():
        if isinstance(tower, dict) and tower.get("config") and isinstance(tower.get("weights"), str):
            near = path.parent / tower["weights"]
            if not near.exists() and not Path(tower["weights"]).exists():
                del tower["weights"]


def _reference() -> str:
    titles: dict[type[BaseModel], str] = {}
    _name_sections(CompositionSpec, "", titles)
    titles[CompositionSpec] = "The file"
    for group, kind in BUILT_IN:
        place = "towers.<name>.config" if group == registry.TOWERS else "links[].config"
        model = registry.config_class(group, kind)
        _name_sections(model, f"{place}.", titles)
        titles[model] = f"`{place}` of kind `{kind}`"
    picture = "![The example's towers and links](diagrams/example.svg)"
    sections = [INTRODUCTION, f"## Example\n\n```yaml\n{EXAMPLE}```\n\n{picture}\n"]
    return "\n".join([*sections, *(_section(model, titles) for model in titles)])


def _name_sections(model: type[BaseModel], place: str, titles: dict[type[BaseModel], str]) -> None:
    """Give a model, and every model inside it that has none yet, a title: where it stands in the file."""
    titles.setdefault(model, f"`{place.removesuffix('.')}`")
    for name, field in model.model_fields.items():
        for inner, step in _models(field.annotation):
            if inner not in titles:
                _name_sections(inner, f"{place}{field.alias or name}{step}.", titles)


def _models(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """Models inside an annotation, and how the path to them goes on."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, ""
    step = {dict: ".<name>", list: "[]"}.get(typing.get_origin(annotation), "")
    for argument in typing.get_args(annotation):
        yield from ((model, step + rest) for model, rest in _models(argument))


def _section(model: type[BaseModel], titles: dict[type[BaseModel], str]) -> str:
    rows = [("key", "value", "default", "meaning"), ("---",) * 4]
    for name, field in model.model_fields.items():
        value = _plain(field.annotation, field.metadata, titles)
        rows.append((f"`{field.alias or name}`", value, _default(field), field.description or ""))
    table = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows)
    words = (inspect.getdoc(model) or "").replace("``", "`")
    return f"## {titles[model]}\n\n{words}\n\n{table}\n"


def _plain(annotation: Any, metadata: Sequence[Any], titles: dict[type[BaseModel], str]) -> str:
    """A type in plain words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _plain(arguments[0], arguments[1:], titles)
    if origin is Literal:
        return _either([f"`{argument}`" for argument in arguments], ", ")
    if origin is None:
        return _plain_scalar(annotation, metadata, titles)
    inner = [_plain(argument, metadata, titles) for argument in arguments if argument is not type(None)]
    if origin is list:
        return f"list of: {inner[0]}"
    return f"mapping from {inner[0]} to: {inner[1]}" if origin is dict else _either(inner, "; ")


def _plain_scalar(annotation: Any, metadata: Sequence[Any], titles: dict[type[BaseModel], str]) -> str:
    if annotation in titles:
        anchor = re.sub(r"[^\w -]", "", titles[annotation].lower()).replace(" ", "-")
        return f"[{titles[annotation]}](#{anchor})"
    if annotation in (int, float):
        return _bounded("whole number" if annotation is int else "number", metadata)
    if annotation is str and any(isinstance(m, StringConstraints) for m in metadata):
        return "name"
    return {bool: "true or false", str: "text", Path: "path"}.get(annotation, "anything")


def _either(options: list[str], between: str) -> str:
    if len(options) == 1:
        return options[0]
    return f"{between.join(options[:-1])}{between if between == '; ' else ' '}or {options[-1]}"


def _bounded(words: str, metadata: Sequence[Any]) -> str:
    signs = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below"}
    bounds = [
        f"{words} {getattr(m, kind.__name__.lower())}"
        for m in metadata
        for kind, words in signs.items()
        if type(m) is kind
    ]
    return ", ".join([words, *bounds])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, (dict, list)) and not value:
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def stale(pages: dict[Path, str], root: Path) -> list[Path]:
    """Files that differ from what they should be, are missing, or draw a spec that is gone."""
    differ = [path for path, text in pages.items() if not path.exists() or path.read_bytes() != text.encode()]
    return sorted([*differ, *_gone(pages, root)])


def _gone(pages: dict[Path, str], root: Path) -> list[Path]:
    return [path for path in (root / "docs" / "diagrams").glob("*") if path not in pages]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds docs/ and recipes/")
    options = parser.parse_args(arguments)
    try:
        pages = documents(options.root)
    except ZippkitError as error:
        print(error, file=sys.stderr)
        return 2
    if options.check:
        found = stale(pages, options.root)
        for path in found:
            print(f"{path.relative_to(options.root)} is stale; run: python docs/generate.py")
        return 1 if found else 0
    for path in _gone(pages, options.root):
        path.unlink()
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
