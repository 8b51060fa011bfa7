"""JSON Schema of YAML files, for editors: the models' own, with every installed kind and the settings of each."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from zippkit.spec import registry

Schema = dict[str, Any]


def json_schema(model: type[BaseModel]) -> Schema:
    """The JSON Schema (draft 2020-12) of a spec, a recipe or an experiment.

    A tower's and a link's ``kind`` is one of those that are installed, and what ``config`` may hold follows from it. A
    config's required keys are left out, as a folder of weights may tell them; `zippkit check` says which are missing.
    """
    schema = model.model_json_schema(by_alias=True)
    definitions: Schema = schema.setdefault("$defs", {})
    sections: tuple[tuple[str, registry.Group], ...] = (("TowerSpec", registry.TOWERS), ("LinkSpec", registry.LINKS))
    for name, group in sections:
        if name in definitions:
            _add_kinds(definitions[name], definitions, group)
    if "TowerSpec" in definitions:
        tower = definitions["TowerSpec"]
        tower["required"].remove("kind")
        tower["anyOf"] = [{"required": ["kind"]}, {"required": ["share_with"]}]
    if "CompositionSpec" in definitions and "spec" in schema["properties"]:
        path = {"type": "string", "description": "Path to a spec's YAML."}
        given = schema["properties"]["spec"]
        schema["properties"]["spec"] = {"description": given.pop("description", ""), "anyOf": [path, given]}
    return _with_base(schema) if {"towers", "spec"} & schema["properties"].keys() else schema


def _with_base(schema: Schema) -> Schema:
    """Allow ``base``, beside which every key of the file may be left out, at any depth."""
    base = {"type": "string", "description": "Another YAML file, of which this one says only in what it differs."}
    whole = {key: value for key, value in schema.items() if key != "$defs"}
    part = _partial(whole)
    part["properties"] = {"base": base, **part["properties"]}
    definitions = schema.get("$defs", {})
    return {
        "if": {"required": ["base"]},
        "then": part,
        "else": whole,
        "$defs": definitions | {f"part.{name}": _partial(each) for name, each in definitions.items()},
    }


def _partial(schema: Any) -> Any:
    """Copy a schema with nothing required, whose references lead to such copies."""
    if isinstance(schema, list):
        return [_partial(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("$ref"), str):
        return {**schema, "$ref": schema["$ref"].replace("#/$defs/", "#/$defs/part.")}
    # The condition by which a config's schema is chosen stays.
    return {key: value if key == "if" else _partial(value) for key, value in schema.items() if key != "required"}


def _add_kinds(section: Schema, definitions: Schema, group: registry.Group) -> None:
    """Say which kinds there are, and by ``if`` and ``then`` what each one's config is."""
    names = list(dict.fromkeys(kind.name for kind in registry.kinds(group)))
    section["properties"]["kind"]["enum"] = names
    section["allOf"] = []
    for name in names:
        place = f"{section['title']}.{name}"
        try:
            config: type[BaseModel] = registry.config_class(group, name)
            # Names of their own: two packages may both have a `Config`.
            settings = config.model_json_schema(by_alias=True, ref_template=f"#/$defs/{place}.{{model}}")
        except Exception:
            # A plugin that cannot be imported, or whose settings have no schema, is a kind without any more.
            continue
        definitions |= {f"{place}.{inner}": each for inner, each in settings.pop("$defs", {}).items()}
        settings.pop("required", None)
        definitions[place] = settings
        chosen = {"properties": {"kind": {"const": name}}, "required": ["kind"]}
        section["allOf"].append({"if": chosen, "then": {"properties": {"config": {"$ref": f"#/$defs/{place}"}}}})
