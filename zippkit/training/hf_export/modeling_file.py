"""One readable modeling file, made of the parts that a composition uses.

The parts are the modules of `zippkit.training.hf_parts`: ordinary Python, which is linted, typed and tested as such. A
comment ``# only with NAME`` stands before a statement, a method or an entry of a table that is left out where the
composition has no NAME.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator
from importlib.resources import files

PARTS = "zippkit.training.hf_parts"
ORDER = (
    *("config", "sequence", "layers"),
    *("decoder", "image_units", "hf_causal_lm", "hf_encoder", "around", "lora"),
    *("link", "attending", "gated_cross_attention", "cross_attention", "prefix", "resampler"),
    *("kinds", "references", "model", "segments", "sampling", "generation", "speech_units"),
)
"""All parts, each behind those that it builds on."""
_ONLY = re.compile(r"^\s*# only with (\w+)$")


def modeling_file(features: Collection[str], about: str) -> str:
    """The text of the file.

    Args:
        features: what the composition uses: names of parts, and of what stands behind ``# only with``.
        about: the docstring.
    """
    always = {"config", "sequence", "layers", "link", "kinds", "model", "segments", "sampling", "generation"}
    wanted = [name for name in ORDER if name in _completed({*features, *always})]
    bodies = [_body(_without(source(name), {*features, *wanted})) for name in wanted]
    text = "\n\n\n".join(bodies)
    imports = "\n".join(_imports([source(name) for name in wanted], text))
    return f'"""{about}"""\n\nfrom __future__ import annotations\n\n{imports}\n\n{text}\n'


def source(name: str) -> str:
    """The text of a part."""
    return (files(PARTS) / f"{name}.py").read_text(encoding="utf-8")


def _completed(names: set[str]) -> set[str]:
    """Parts, and those on which they build; tables and the model name every part, and need none."""
    found, waiting = set[str](), list(names & set(ORDER))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [] if name in ("kinds", "model") else _parts_imported(source(name))
    return found


def _parts_imported(text: str) -> list[str]:
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
    return [str(node.module).rpartition(".")[2] for node in nodes if str(node.module).startswith(f"{PARTS}.")]


def _without(text: str, features: Collection[str]) -> str:
    """A part without what the composition does not use, and without the comments that say so."""
    lines, dropped = text.splitlines(), set[int]()
    begins = {_first_line(node): node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)}
    for i, line in enumerate(lines):
        only = _ONLY.match(line)
        if only:
            dropped.add(i)
            if only[1] not in features:
                node = begins.get(i + 2)
                last = i + 1 if node is None else (node.end_lineno or 0) - 1
                dropped |= set(range(i + 1, last + 1))
    return "\n".join(line for i, line in enumerate(lines) if i not in dropped)


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(each.lineno for each in decorators)])


def _body(text: str) -> str:
    """A part without its docstring and its imports; the docstring's first line becomes a comment over it."""
    tree = ast.parse(text)
    others = [node for node in tree.body[1:] if not isinstance(node, ast.Import | ast.ImportFrom)]
    about = (ast.get_docstring(tree) or "").splitlines()[0]
    begin = _first_line(others[0]) - 1
    body = "\n".join(text.splitlines()[begin:])
    # What was left out leaves its empty lines behind.
    body = re.sub(r"\n{4,}", "\n\n\n", body)
    body = re.sub(r"\n\n\n+(?= )", "\n\n", body)
    return f"# {about}\n\n\n{body.strip()}"


def _imports(texts: Iterable[str], body: str) -> Iterator[str]:
    """The imports of all parts, of what is used, in the order that isort gives them."""
    plain, named = set[str](), dict[str, set[str]]()
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    for text in texts:
        for node in ast.parse(text).body:
            if isinstance(node, ast.Import):
                plain |= {_told(each) for each in node.names if (each.asname or each.name.partition(".")[0]) in used}
            elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith((PARTS, "__future__")):
                names = {_told(each) for each in node.names if (each.asname or each.name) in used}
                named.setdefault(str(node.module), set()).update(names)
    lines = {name: f"import {name}" for name in plain}
    both = [(name, 0, line) for name, line in lines.items()]
    both += [(m, 1, f"from {m} import {', '.join(sorted(names, key=_rank))}") for m, names in named.items() if names]
    for foreign in (False, True):
        group = sorted((each for each in both if _foreign(each[0]) is foreign), key=lambda each: (each[1], each[0]))
        yield from ([""] if foreign else [])
        yield from (line for _, _, line in group)


def _told(name: ast.alias) -> str:
    return name.name if name.asname is None else f"{name.name} as {name.asname}"


def _rank(name: str) -> tuple[int, str]:
    """Constants, classes, then the rest, as isort sorts what one import names."""
    plain = name.partition(" ")[0]
    return (0 if plain.isupper() and len(plain) > 1 else 1 if plain[:1].isupper() else 2, name.lower())


def _foreign(module: str) -> bool:
    return module.partition(".")[0] in ("torch", "transformers", "safetensors", "numpy")
