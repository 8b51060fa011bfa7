"""How far a spec, a batch, a prompt and a recipe walk through the code: which files a call enters, and how often.

python benchmarks/journeys.py [--json]

A file is entered when a call goes from a function of another file of zippkit into one of its own; a return is no entry.
A climb is an entry into a file that imports, directly or not, the one that the call came from: against the data flow.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import networkx as nx
import yaml

import zippkit

LIBRARY = Path(zippkit.__file__).parent
ROOT = LIBRARY.parent
DEMO = ROOT / "recipes" / "demo"


def imports() -> nx.DiGraph:
    """File -> the files of the library that it imports, as far as import statements tell."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in LIBRARY.rglob("*.py")}
    graph = nx.DiGraph()
    for path in files.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for name in node.names:
                    target = files.get(f"{node.module}.{name.name}") or files.get(node.module)
                    if target is not None:
                        graph.add_edge(str(path), str(target))
    return graph


class Walk:
    """Calls between files of the library, while it is watched."""

    def __init__(self) -> None:
        self.entered: Counter[str] = Counter()
        self.steps: Counter[tuple[str, str]] = Counter()

    def watch(self, frame: FrameType, event: str, argument: Any) -> None:
        """What `sys.setprofile` calls."""
        del argument
        file = frame.f_code.co_filename
        # What runs while a module is imported is no journey.
        if event != "call" or not file.startswith(str(LIBRARY)) or frame.f_code.co_name == "<module>":
            return
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(str(LIBRARY)):
            caller = caller.f_back
        before = caller.f_code.co_filename if caller is not None else ""
        if before != file:
            self.entered[file] += 1
            if before:
                self.steps[before, file] += 1


def walk(call: Callable[[], Any]) -> Walk:
    """Run something, and tell where it went."""
    found = Walk()
    sys.setprofile(found.watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def _imports(graph: nx.DiGraph, file: str, other: str) -> bool:
    return file in graph and other in graph and nx.has_path(graph, file, other)


def journeys() -> dict[str, Callable[[], Any]]:
    """The four journeys, on the demo's composition with random weights."""
    spec = zippkit.load_spec(DEMO / "spec.yaml")
    zipped = zippkit.compile(spec)
    segments = [zippkit.Segment("speech", [7, 8], loss=False), zippkit.Segment("text", [3, 4])]
    batch = zipped.collate([segments])
    return {
        "spec -> compile": lambda: zippkit.compile(zippkit.load_spec(DEMO / "spec.yaml")),
        "batch -> logits": lambda: zipped.model(batch),
        "prompt -> tokens": lambda: zippkit.generate(zipped, segments[:1], outputs=["text"], max_tokens=3),
        "recipe -> run": _train,
    }


def _train() -> None:
    from zippkit import cli

    with tempfile.TemporaryDirectory() as folder:
        recipe = yaml.safe_load((DEMO / "recipe.yaml").read_text())
        recipe |= {"spec": str(DEMO / "spec.yaml"), "data": str(DEMO / "data"), "pretrain": {}, "device": "cpu"}
        recipe["train"] |= {"steps": 2}
        (Path(folder) / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        sys.argv = ["zippkit", "train", f"{folder}/recipe.yaml", "--out", f"{folder}/run"]
        with suppress(SystemExit):
            cli.main()


def main() -> None:
    """Print a line for each journey."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    above = imports()
    told = {}
    for name, call in journeys().items():
        call()  # what is imported on the way is imported now
        found = walk(call)
        climbs = {pair: n for pair, n in found.steps.items() if _imports(above, pair[1], pair[0])}
        told[name] = {
            "files": len(found.entered),
            "entries": sum(found.entered.values()),
            "climbs": sum(climbs.values()),
            "pairs that climb": len(climbs),
            "most entered": [(str(Path(file).relative_to(LIBRARY)), n) for file, n in found.entered.most_common(3)],
        }
    for name, numbers in told.items():
        print(json.dumps({name: numbers}) if options.json else f"{name}: {numbers}")


if __name__ == "__main__":
    main()
