"""Write what follows from where files stand: the README's tree, the picture of rooms, the index of decisions.

python docs/house.py            writes the README's tree, docs/architecture.svg and docs/decisions/README.md
python docs/house.py --check    names the files that are stale, and exits with 1 if there are any

In a page only what stands between the lines `<!-- NAME -->` and `<!-- end NAME -->` is written.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from textwrap import wrap

import networkx as nx

from zippkit.plan.diagram.svg import FONT, box, element, text

ROOT = Path(__file__).parents[1]
WIDTH = 118
COLUMN, ROW, HALF_WIDTH, HALF_HEIGHT = 170, 86, 66, 22
"""Pixels of the picture: from room to room, and from a room's centre to its edges."""
INK, PAPER, EDGE = "#22303a", "#f4f6f8", "#9db0c0"


def first_line(file: Path) -> str:
    """What a file says it is for."""
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return said.split("\n\n")[0].replace("\n", " ").replace("``", "`")


def rooms(root: Path) -> list[str]:
    """The first level of the library, from what users call down to what all stands on, as the contract has it."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "rooms")
    return [room for layer in layers for room in layer.split(" | ")]


def arrows(root: Path) -> nx.DiGraph:
    """Room -> the rooms that it imports from."""
    graph = nx.DiGraph()
    graph.add_nodes_from(rooms(root))
    for file in sorted((root / "zippkit").rglob("*.py")):
        room = file.relative_to(root / "zippkit").with_suffix("").parts[0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("zippkit."):
                graph.add_edge(room, node.module.split(".")[1])
    graph.remove_nodes_from(["__init__", "__main__"])
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    return graph


def _names(folder: Path) -> Iterator[str]:
    """Every file below a folder by its name, those of a folder inside it in brackets behind that one's."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() and any(path.rglob("*.py")):
            yield f"{path.name}/ ({' '.join(_names(path))})"
        elif path.suffix == ".py" and path.name != "__init__.py":
            yield path.stem


def tree(root: Path) -> str:
    """Every file of the library and of our own towers, room by room, in the order of the data flow."""
    lines = ["```", "zippkit/"]
    for room in reversed(rooms(root)):
        file = root / "zippkit" / room
        said = first_line(file / "__init__.py" if file.is_dir() else file.with_suffix(".py"))
        lines += _entry(f"  {room}/" if file.is_dir() else f"  {room}.py", said)
        if file.is_dir():
            lines += wrap(" ".join(_names(file)), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    lines.append("towers/zippkit_towers/    registered as a third party's would be")
    for folder in sorted(file.parent for file in (root / "towers" / "zippkit_towers").glob("*/__init__.py")):
        lines += _entry(f"  {folder.name}/", first_line(folder / "__init__.py"))
        lines += wrap(" ".join(_names(folder)), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join([*lines, "```"])


def _entry(name: str, said: str) -> list[str]:
    return wrap(said, WIDTH, initial_indent=f"{name:18}", subsequent_indent=" " * 18)


def picture(root: Path) -> str:
    """Rooms as boxes, each above all that it imports; arrows that follow from others are left out."""
    graph = arrows(root)
    drawn = nx.transitive_reduction(graph)
    floors: dict[str, int] = {}
    for room in reversed(list(nx.topological_sort(graph))):
        floors[room] = 1 + max((floors[below] for below in graph.successors(room)), default=-1)
    top = max(floors.values())
    widest = max(Counter(floors.values()).values())
    at: dict[str, tuple[float, float]] = {}
    for floor in range(top, -1, -1):
        row = [room for room in rooms(root) if floors.get(room) == floor]
        # Below those that import it, so that arrows cross seldom.
        row.sort(key=lambda room: mean([at[above][0] for above in drawn.predecessors(room)] or [0]))
        for i, room in enumerate(row):
            at[room] = (COLUMN * (widest / 2 + 0.5 + i - (len(row) - 1) / 2), ROW * (top - floor + 0.6))
    width, height = COLUMN * (widest + 1.4), ROW * (top + 1.2)
    head = '<path d="M0 0L8 4L0 8Z"/>'
    tip = f'<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">{head}'
    marker = f"<defs>{tip}</marker></defs>"
    parts = [marker, element("rect", width=width, height=height, fill="white")]
    for above, below in sorted(drawn.edges):
        parts.append(_arrow(at[above], at[below], floors[above] - floors[below]))
    for room, (x, y) in at.items():
        parts.append(box(x, y, 2 * HALF_WIDTH, 2 * HALF_HEIGHT, fill=PAPER, stroke=EDGE))
        parts.append(text(x, y, room, 13, text_anchor="middle", fill=INK))
    view = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {view} font-family="{FONT}">\n' + "\n".join(parts) + "\n</svg>\n"


def _arrow(start: tuple[float, float], end: tuple[float, float], floors: int) -> str:
    """Down from one room to another; one that passes a floor bends around what stands there."""
    (x0, y0), (x1, y1) = (start[0], start[1] + HALF_HEIGHT), (end[0], end[1] - HALF_HEIGHT)
    path = f"M{x0:.0f} {y0:.0f}L{x1:.0f} {y1:.0f}"
    if floors > 1:
        side = 1 if x1 >= x0 else -1
        x0, x1, y0, y1 = x0 + side * HALF_WIDTH, x1 + side * HALF_WIDTH, y0 - HALF_HEIGHT, y1 + HALF_HEIGHT
        out = max(x0 * side, x1 * side) * side + side * (24 + 12 * floors)
        path = f"M{x0:.0f} {y0:.0f}C{out:.0f} {y0:.0f} {out:.0f} {y1:.0f} {x1:.0f} {y1:.0f}"
    return element("path", d=path, stroke=INK, stroke_width=1.2, fill="none", marker_end="url(#tip)")


def decisions(root: Path) -> str:
    """The index of decisions, a line each."""
    said = "What was chosen, what was given up, and the numbers."
    lines = ["<!-- Written by docs/house.py. -->", "# Decisions", "", said, ""]
    for file in sorted((root / "docs" / "decisions").glob("[0-9]*.md")):
        number = file.name.split("-")[0]
        title = re.sub(r"^#\s*\d+[.:]\s*", "", file.read_text(encoding="utf-8").splitlines()[0])
        title = re.sub(r"\s*\(\d{4}-.*\)$", "", title)
        lines.append(f"- {number} [{title[0].upper()}{title[1:]}]({file.name})")
    return "\n".join(lines) + "\n"


def _between(page: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name} -->\n", f"\n<!-- end {name} -->"
    if begin not in page or end not in page:
        raise SystemExit(f"a page has lost its lines {begin.strip()!r} and {end.strip()!r}")
    return page[: page.index(begin) + len(begin)] + content + page[page.index(end) :]


def pages(root: Path) -> dict[Path, str]:
    """Every file that is written, and its text."""
    readme = root / "README.md"
    return {
        readme: _between(readme.read_text(encoding="utf-8"), "tree", tree(root)),
        root / "docs" / "architecture.svg": picture(root),
        root / "docs" / "decisions" / "README.md": decisions(root),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, or name what is stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project")
    options = parser.parse_args(arguments)
    written = pages(options.root)
    stale = [path for path, new in written.items() if not path.exists() or path.read_text(encoding="utf-8") != new]
    for path in stale:
        if options.check:
            print(f"{path.relative_to(options.root)} is stale; run: python docs/house.py")
        else:
            path.write_text(written[path], encoding="utf-8")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
