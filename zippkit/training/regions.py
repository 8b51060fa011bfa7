"""What `compile: true` compiles: each layer of a tower and each site of a link by itself, equal ones once.

A graph takes the module's parameters as inputs, so all layers of one class and one size share it, and compiling takes
as long for forty layers as for one. What is between them (embeddings, heads, losses, parts) runs as it is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

from zippkit.model.zipped_model import ZippedModel

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
MOST_GRAPHS = 256
"""Graphs of one method: for shapes of batches, and for layers of different towers."""


class Regions:
    """The compiled methods of a model's modules.

    They run compiled inside ``with regions.compiled():`` and as ever elsewhere. Hooks of the modules, such as FSDP2's,
    run around them, so regions are made before a model is split.
    """

    def __init__(self, model: ZippedModel, compiled: Compile) -> None:
        """Put them in place.

        Args:
            model: whose layers and sites are to be compiled.
            compiled: compiles a function.
        """
        self._on = False
        self._methods: dict[tuple[type, str], Callable[..., Any]] = {}
        for module, methods in _regions(model):
            for name in methods:
                key = type(module), name
                if key not in self._methods:
                    self._methods[key] = compiled(getattr(*key))
                setattr(module, name, MethodType(self._switched(*key), module))

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Run compiled what is called here."""
        self._on = True
        try:
            with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
                yield
        finally:
            self._on = False

    def _switched(self, kind: type, name: str) -> Callable[..., Any]:
        compiled, own = self._methods[kind, name], getattr(kind, name)

        def run(module: nn.Module, *given: Any, **named: Any) -> Any:
            return (compiled if self._on else own)(module, *given, **named)

        return run


def _regions(model: ZippedModel) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Modules, each once, and which of their methods are compiled."""
    found: dict[nn.Module, tuple[str, ...]] = {}
    inside = {(op.tower, op.depth) for op in model.plan.ops if op.kind == "project"}
    for name in model.towers:
        # Whoever listens to routers does so by hooks inside the layers, which would be compiled anew at each step.
        layers = () if model.routes(name) else model.tower(name).layer_modules()
        for i, layer in enumerate(layers, 1):
            joins = (name, i) in inside and all(hasattr(layer, method) for method in ("project", "close"))
            found[layer] = ("project", "close") if joins else ("forward",)
    for site in (op.site for op in model.plan.ops if op.site is not None):
        link = model.link(site)
        if any(True for _ in link.parameters()):
            found[link] = ("write", "read")
    yield from found.items()


def telling_first(step: Callable[..., Any]) -> Callable[..., Any]:
    """``step``, which says how long its first call took: that is when most is compiled."""
    waits = True

    def told(*given: Any, **named: Any) -> Any:
        nonlocal waits
        began = time.monotonic()
        out = step(*given, **named)
        if waits:
            took = time.monotonic() - began
            print(f"compile: first step of each batch size compiles; took {took:.0f} s", file=sys.stderr)
        waits = False
        return out

    return told
