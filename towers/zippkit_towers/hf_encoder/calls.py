"""Records how an encoder of transformers calls its layers, and calls them in the same way, layer by layer.

The model's own ``forward`` is run with stand-ins in its list of layers, on shallow copies of the modules above that
list; the model itself is not touched. A stand-in records its layer's arguments besides the states: masks, position
embeddings and biases, whatever they are called. So nothing of a family has to be known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Where = int | str
"""A positional argument by its place, or a keyword argument by its name."""


@dataclass(frozen=True)
class Form:
    """How a model calls one of its layers, and what the layer returns."""

    module: str
    """Path under the encoder; a module that is called several times has several forms."""
    states: Where
    """The argument that the states are."""
    more: tuple[Where | None, ...] | None
    """For each value returned after the states, the argument that is passed through, or None. None: states alone."""
    makes: bool
    """Whether later layers take something that it returns, such as the position biases of T5's first layer."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of an encoder."""

    stack: str
    """Path of the list of layers."""
    forms: tuple[Form, ...]
    """One for each layer, in the order in which they run."""
    after: tuple[str, ...]
    """Paths of what runs between the last layer and ``last_hidden_state``."""


@dataclass
class Call:
    """One call of a layer."""

    module: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any = None

    def argument(self, where: Where) -> Any:
        """The value of one argument."""
        return self.args[where] if isinstance(where, int) else self.kwargs[where]

    def arguments(self) -> Iterator[tuple[Where, Any]]:
        """Every argument, positional ones first."""
        yield from enumerate(self.args)
        yield from self.kwargs.items()

    def with_states(self, where: Where, states: Tensor | None) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments with ``states`` in place of the recorded ones."""
        args, kwargs = list(self.args), dict(self.kwargs)
        if isinstance(where, int):
            args[where] = states
        else:
            kwargs[where] = states
        return args, kwargs


class _StandIn(nn.Module):
    """Takes a layer's place in the list, with all of the layer's attributes."""

    def __init__(self, layer: nn.Module, run: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        # Not registered: the layer's parameters are not this module's.
        self.__dict__["layer"], self.__dict__["run"] = layer, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["run"](self.__dict__["layer"], args, kwargs)


def shallow(module: nn.Module, children: Mapping[str, nn.Module | None]) -> Any:
    """A copy of a module that shares its parameters and buffers, with these children."""
    copied = object.__new__(type(module))
    copied.__dict__.update(module.__dict__)
    copied.__dict__["_modules"] = dict(children)
    return copied


def _replaced(module: nn.Module, path: str, part: nn.Module) -> Any:
    """A shallow copy of a module in which another part stands at a path."""
    if not path:
        return part
    name, _, rest = path.partition(".")
    return shallow(module, {**module._modules, name: _replaced(module.get_submodule(name), rest, part)})


Run = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], Any]


def with_stand_ins(encoder: nn.Module, stack: str, run: Run) -> Any:
    """A shallow copy of an encoder in which ``run`` is called in place of each layer of the list at ``stack``."""

    def stand_in(path: str, layer: nn.Module) -> _StandIn:
        return _StandIn(layer, lambda *given: run(path, *given))

    layers = encoder.get_submodule(stack).named_children()
    return _replaced(encoder, stack, nn.ModuleList(stand_in(f"{stack}.{name}", layer) for name, layer in layers))


def record(encoder: nn.Module, anatomy: Anatomy, inputs: Mapping[str, Any]) -> tuple[Tensor, list[Call]]:
    """Run a model up to its layers.

    Returns:
        The states (N, L, D) at depth 0, and the call of each layer, without its states.
    """
    calls: list[Call] = []
    first: list[Tensor] = []

    def note(path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        form, call = anatomy.forms[len(calls)], Call(path, args, kwargs)
        states = call.argument(form.states)
        first.append(states)
        calls.append(Call(path, *_frozen(call.with_states(form.states, None))))
        if form.more is None:
            return states
        if form.makes:
            return (states, *layer(*args, **kwargs)[1:])
        return (states, *[None if at is None else call.argument(at) for at in form.more])

    with_stand_ins(encoder, anatomy.stack, note)(**inputs)
    return first[0], calls


def _frozen(given: tuple[list[Any], dict[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(given[0]), given[1]


def run_layer(encoder: nn.Module, form: Form, call: Call, states: Tensor) -> Tensor:
    """Run a layer on (N, L, D) states as its model would; return its states."""
    args, kwargs = call.with_states(form.states, states)
    out: Tensor = states_of(encoder.get_submodule(form.module)(*args, **kwargs))
    return out


def states_of(out: Any) -> Any:
    """The states among what a layer or module returns."""
    return out[0] if isinstance(out, tuple) and out else out
