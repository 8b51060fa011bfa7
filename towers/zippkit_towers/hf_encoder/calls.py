"""How an encoder of transformers calls its layers: found once by watching it, and then done again layer by layer.

The model's own ``forward`` is run with stand-ins in its list of layers, on shallow copies of the modules above that
list; the model itself is not touched. A stand-in notes what its layer is given besides the states: masks, position
embeddings and biases, whatever they are called. So nothing of a family has to be known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zippkit_towers.hf_encoder.others import one_line

Where = int | str
"""A positional argument by its place, or a keyword argument by its name."""


class UnfitError(Exception):
    """An encoder that cannot be run layer by layer; says why in half a sentence."""


@dataclass(frozen=True)
class Form:
    """How a model calls one of its layers, and what the layer gives."""

    module: str
    """Path under the encoder; a module that is called several times has several forms."""
    states: Where
    """The argument that the states are."""
    more: tuple[Where | None, ...] | None
    """What it gives behind the states: for each the argument that is handed on, or None. None: the states alone."""
    makes: bool
    """Whether it makes something that later layers are given, as the first layer of T5 makes its position biases."""


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
        return self.args[where] if isinstance(where, int) else self.kwargs[where]

    def arguments(self) -> Iterator[tuple[Where, Any]]:
        yield from enumerate(self.args)
        yield from self.kwargs.items()

    def with_states(self, where: Where, states: Tensor | None) -> tuple[list[Any], dict[str, Any]]:
        """The arguments with other states."""
        args, kwargs = list(self.args), dict(self.kwargs)
        if isinstance(where, int):
            args[where] = states
        else:
            kwargs[where] = states
        return args, kwargs


class _StandIn(nn.Module):
    """Stands where a layer does, and has whatever attributes the layer has."""

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


def _with_stand_ins(encoder: nn.Module, stack: str, run: Run) -> Any:
    """A shallow copy of an encoder whose layers are stand-ins for calls of ``run``."""

    def stand_in(path: str, layer: nn.Module) -> _StandIn:
        return _StandIn(layer, lambda *given: run(path, *given))

    layers = encoder.get_submodule(stack).named_children()
    return _replaced(encoder, stack, nn.ModuleList(stand_in(f"{stack}.{name}", layer) for name, layer in layers))


def dissect(encoder: nn.Module, inputs: Mapping[str, Any], n_layers: int, dim: int) -> Anatomy:
    """Find the parts of an encoder from its module tree and from what its forward does with some inputs.

    Args:
        encoder: in evaluation mode.
        inputs: of its forward, for N segments.
        n_layers: how many layers it must have.
        dim: width of the states between them.

    Raises:
        UnfitError: there is no such list of layers, or something besides a norm stands between or behind them.
    """
    reasons: list[str] = []
    for path, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module):
            try:
                return _dissected(encoder, path, inputs, n_layers, dim)
            except UnfitError as error:
                reasons.append(str(error))
            except Exception as error:
                # A list of something else may stand where no stand-in can.
                reasons.append(f"{_COUNT} {path!r} cannot be watched ({type(error).__name__}: {one_line(error)})")
    named = [reason for reason in reasons if not reason.startswith(_COUNT)]
    raise UnfitError((named or reasons or ["its module tree has no list of layers"])[0])


_COUNT = "its list of layers"


def _dissected(encoder: nn.Module, stack: str, inputs: Mapping[str, Any], n_layers: int, dim: int) -> Anatomy:
    calls: list[Call] = []

    def watch(path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls.append(call := Call(path, args, kwargs))
        call.out = layer(*args, **kwargs)
        return call.out

    ran: list[tuple[str, Any, Any]] = []
    handles = [
        module.register_forward_hook(
            lambda _, args, out, name=name: ran.append((name, args[0] if args else None, _states_of(out)))
        )
        for name, module in encoder.named_modules()
        if name and not name.startswith(stack) and not stack.startswith(name)
    ]
    try:
        last = _with_stand_ins(encoder, stack, watch)(**inputs).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) != n_layers:
        raise UnfitError(f"{_COUNT} {stack!r} is called {len(calls)} times, and it has {n_layers} layers")
    forms = tuple(_form(calls, i, stack, dim) for i in range(n_layers))
    return Anatomy(stack, forms, tuple(_after(_states_of(calls[-1].out), last, ran)))


def _states_of(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) and out else out


def _form(calls: Sequence[Call], index: int, stack: str, dim: int) -> Form:
    call, before = calls[index], calls[index - 1] if index else None
    states, out = (_states_of(before.out) if before else None), _states_of(call.out)
    if not isinstance(call.out, Tensor | tuple) or not isinstance(out, Tensor):
        raise UnfitError(f"layer {index} of {stack!r} gives a {type(call.out).__name__} instead of states")
    if before is None:
        where = next((at for at, value in call.arguments() if isinstance(value, Tensor)), None)
    else:
        where = next((at for at, value in call.arguments() if value is states), None)
    if where is None:
        raise UnfitError(f"layer {index} of {stack!r} is not given the states of the layer before it as they are")
    shape = call.argument(where).shape
    if len(shape) != 3 or shape[2] != dim or out.shape != shape:
        seen = f"{tuple(shape)} to {tuple(out.shape)}"
        raise UnfitError(f"layer {index} of {stack!r} makes {seen}; expected (segments, states, {dim}) both times")
    more = tuple(_handed_on(call, value) for value in call.out[1:]) if isinstance(call.out, tuple) else None
    made = [
        value
        for value, handed in zip(call.out[1:] if more else (), more or (), strict=True)
        if handed is None and isinstance(value, Tensor)
    ]
    later = [value for other in calls[index + 1 :] for _, value in other.arguments()]
    return Form(call.module, where, more, any(value is given for value in made for given in later))


def _handed_on(call: Call, value: Any) -> Where | None:
    return None if value is None else next((at for at, given in call.arguments() if given is value), None)


def _after(states: Tensor, last: Any, ran: Sequence[tuple[str, Any, Any]]) -> Iterator[str]:
    """Names of the modules through which the last layer's states become ``last_hidden_state``."""
    for _ in range(4):
        if states is last:
            return
        following = [(name, out) for name, given, out in ran if given is states and isinstance(out, Tensor)]
        # Of those that take the states, the one that goes on counts: a pooler is fed the finished states.
        on = [(n, out) for n, out in following if out is last or any(given is out for _, given, _ in ran)]
        if not on:
            break
        (name, states) = next(((n, out) for n, out in on if out is last), on[0])
        yield name
    raise UnfitError("more than norms stands between its last layer and its last_hidden_state")


def record(encoder: nn.Module, anatomy: Anatomy, inputs: Mapping[str, Any]) -> tuple[Tensor, list[Call]]:
    """The states (N, L, D) at depth 0 of some inputs, and how each layer is to be called, without its states."""
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

    _with_stand_ins(encoder, anatomy.stack, note)(**inputs)
    return first[0], calls


def _frozen(given: tuple[list[Any], dict[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(given[0]), given[1]


def run_layer(encoder: nn.Module, form: Form, call: Call, states: Tensor) -> Tensor:
    """A layer's states (N, L, D), as its model would call it on these."""
    args, kwargs = call.with_states(form.states, states)
    out: Tensor = _states_of(encoder.get_submodule(form.module)(*args, **kwargs))
    return out


class Unused(nn.Module):
    """Stands where a part stood on which no state depends."""

    def forward(self, given: Any = None, *_: Any, **__: Any) -> Any:
        return given


def drop_unused(encoder: nn.Module, states: Tensor) -> None:
    """Take out what ``states``, made by the encoder, do not depend on, as poolers and tokens that stand in for masked
    inputs: it would never be trained."""
    named = dict(encoder.named_parameters())
    wanted = [name for name, parameter in named.items() if parameter.requires_grad]
    grads = torch.autograd.grad(states.sum(), [named[name] for name in wanted], allow_unused=True)
    unused = {name for name, grad in zip(wanted, grads, strict=True) if grad is None}
    _drop(encoder, "", unused)


def _drop(module: nn.Module, prefix: str, unused: set[str]) -> None:
    for name, _ in list(module.named_parameters(recurse=False)):
        if prefix + name in unused:
            module.register_parameter(name, None)
    for name, child in list(module.named_children()):
        own = {f"{prefix}{name}.{inner}" for inner, _ in child.named_parameters()}
        if own and own <= unused:
            module._modules[name] = Unused()
        elif own & unused:
            _drop(child, f"{prefix}{name}.", unused)
