"""Finds the parts of an encoder of transformers by watching its own forward: its layers, and what follows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zippkit_towers.hf_encoder.calls import Anatomy, Call, Form, Where, states_of, with_stand_ins
from zippkit_towers.hf_encoder.guessed_shape import one_line


class UnfitError(Exception):
    """An encoder that cannot be run layer by layer; says why in half a sentence."""


_COUNT = "its list of layers"
"""Begins a complaint about a list that is not that of the layers; any other complaint is told before it."""


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


def _dissected(encoder: nn.Module, stack: str, inputs: Mapping[str, Any], n_layers: int, dim: int) -> Anatomy:
    calls: list[Call] = []

    def watch(path: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        calls.append(call := Call(path, args, kwargs))
        call.out = layer(*args, **kwargs)
        return call.out

    ran: list[tuple[str, Any, Any]] = []
    handles = [
        module.register_forward_hook(
            lambda _, args, out, name=name: ran.append((name, args[0] if args else None, states_of(out)))
        )
        for name, module in encoder.named_modules()
        if name and not name.startswith(stack) and not stack.startswith(name)
    ]
    try:
        last = with_stand_ins(encoder, stack, watch)(**inputs).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) != n_layers:
        raise UnfitError(f"{_COUNT} {stack!r} is called {len(calls)} times, and it has {n_layers} layers")
    forms = tuple(_form(calls, i, stack, dim) for i in range(n_layers))
    return Anatomy(stack, forms, tuple(_after(states_of(calls[-1].out), last, ran)))


def _form(calls: Sequence[Call], index: int, stack: str, dim: int) -> Form:
    call, before = calls[index], calls[index - 1] if index else None
    states, out = (states_of(before.out) if before else None), states_of(call.out)
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


class Unused(nn.Module):
    """Takes the place of a part on which no state depends."""

    def forward(self, given: Any = None, *_: Any, **__: Any) -> Any:
        """Return the first argument as it is."""
        return given


def drop_unused(encoder: nn.Module, states: Tensor) -> None:
    """Remove the parts that ``states``, made by the encoder, do not depend on: they would never be trained.

    Examples are poolers, and the tokens that stand in for masked inputs.
    """
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
