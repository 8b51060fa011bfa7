"""Finds the parts of a decoder of transformers in its module tree, without looking its family up.

The result is a guess. The comparison with transformers' own forward (`zippkit_towers.hf_causal_lm.parity`) refuses what
differs, so no family needs an entry in a table.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from zippkit.errors import CheckpointError

_GIVEN = ("attention_mask", "position_ids", "position_embeddings", "use_cache")
"""Arguments of layers that are known, besides the states and the cache."""
_CACHES = ("past_key_values", "past_key_value", "layer_past")
_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f", "final_norm", "layer_norm")


@dataclass(frozen=True)
class Parts:
    """Dotted names of a decoder's parts, from its root; empty where there is none."""

    base: str
    """The module that holds the others, such as ``model``."""
    embedding: str
    layers: str
    norm: str
    head: str
    rotary: str
    """Computes the rotary angles for all layers."""
    positions: str
    """Learned embedding of positions."""
    embedding_norm: str
    """Between the embedding and the first layer."""
    takes: frozenset[str]
    """Arguments of a layer besides the states and the cache."""
    cache: str
    """A layer's argument for the cache."""
    angles_by_kind: bool
    """Whether each kind of layer has rotary angles of its own."""


def find_parts(model: nn.Module, n_layers: int) -> Parts:
    """The parts of a whole model of transformers, with or without values.

    Raises:
        CheckpointError: says in one sentence why it cannot be run layer by layer.
    """
    name = type(model).__name__
    names = {module: path for path, module in model.named_modules()}
    lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    lists = [path for path in lists if len(_at(model, path)) == n_layers]
    embedding = names.get(_asked(model, "get_input_embeddings"), "")
    if not lists or not embedding:
        what = f"no list of {n_layers} layers" if not lists else "no embedding of tokens"
        raise CheckpointError(f"{name} has {what}, so it cannot be run layer by layer")
    layers = min(lists, key=lambda path: path.count("."))
    base = layers.rpartition(".")[0]
    beside = {
        f"{base}.{child}".lstrip("."): module
        for child, module in _at(model, base).named_children()
        if f"{base}.{child}".lstrip(".") not in (layers, embedding)
    }
    # Falcon's layers want alibi, and may be told that there is none.
    without = ("alibi",) if getattr(cast("Any", model).config, "alibi", None) is False else ()
    takes, cache = _arguments(_at(model, layers), name, without)
    rotary = _first(path for path, module in beside.items() if "rotary" in type(module).__name__.lower())
    return Parts(
        base=base,
        embedding=embedding,
        layers=layers,
        norm=_norm(beside),
        head=names.get(_asked(model, "get_output_embeddings"), ""),
        rotary=rotary,
        positions=_first(path for path, module in beside.items() if _is_positions(path, module)),
        embedding_norm=_first(path for path, module in beside.items() if _is_norm(module) and "emb" in _last(path)),
        takes=takes,
        cache=cache,
        angles_by_kind=bool(rotary) and "layer_type" in inspect.signature(_at(model, rotary).forward).parameters,
    )


def _arguments(layers: nn.ModuleList, name: str, without: tuple[str, ...]) -> tuple[frozenset[str], str]:
    """Arguments of a layer besides the states, and its argument for the cache; ``without`` are given as None."""
    known = {*_GIVEN, *without}
    found: set[str] = set()
    for kind in {type(layer) for layer in layers}:
        arguments = list(inspect.signature(kind.forward).parameters.values())[2:]
        takes_any = any(argument.kind is argument.VAR_KEYWORD for argument in arguments)
        wanted = [a.name for a in arguments if a.default is a.empty and a.kind is a.POSITIONAL_OR_KEYWORD]
        unknown = sorted(set(wanted) - {*known, *_CACHES})
        if unknown:
            raise CheckpointError(
                f"the layers of {name} want {', '.join(map(repr, unknown))}, which is not given to them"
            )
        found |= {a.name for a in arguments} | (set(_GIVEN) if takes_any else set())
    cache = _first(each for each in _CACHES if each in found)
    if not cache:
        raise CheckpointError(f"the layers of {name} take no cache of keys and values, so it could not generate")
    return frozenset(found & known), cache


def _asked(model: nn.Module, method: str) -> Any:
    try:
        return getattr(model, method)()
    except (AttributeError, NotImplementedError):
        return None


def _at(model: nn.Module, path: str) -> Any:
    return model.get_submodule(path)


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _first(paths: Iterator[str]) -> str:
    return next(paths, "")


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _norm(beside: Mapping[str, nn.Module]) -> str:
    """The norm after the last layer."""
    norms = [path for path, module in beside.items() if _is_norm(module) and "emb" not in _last(path)]
    return next((path for path in norms if _last(path) in _NORMS), norms[-1] if norms else "")


def _is_positions(path: str, module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) and ("pos" in _last(path) or _last(path) == "wpe")
