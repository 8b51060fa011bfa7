"""Stages: parts of a model that rest in one of them, and the proof that they did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from zippkit.composition import compile
from zippkit.errors import ZippkitError
from zippkit.model.weights import fingerprint, hashes_here
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.parts import part_of
from zippkit.spec.freeze_rules import frozen_by
from zippkit.spec.phase import Rules, Stage
from zippkit.spec.recipe import Recipe

Freeze = Mapping[str, Rules]
"""Part (``towers.text``, ``links.speech_to_text``) to whether it rests, or to rules by pattern for its parameters."""


def resting(model: ZippedModel, freeze: Freeze) -> dict[str, Tensor]:
    """The tensors that a stage freezes, by their names in the model: parameters, and buffers of parts as a whole.

    Raises:
        ZippkitError: a rule matches nothing, or a parameter matches no rule or several; every case is named.
    """
    found: dict[str, Tensor] = {}
    wrong: list[str] = []
    for part, rules in freeze.items():
        parameters = dict(_inside(part, model.named_parameters()))
        try:
            frozen = frozen_by(rules, parameters)
        except ValueError as error:
            wrong.append(f"freeze.{part}: {error}")
            continue
        found |= {f"{part}.{name}": parameters[name] for name in parameters if frozen[name]}
        if rules is True:
            found |= {f"{part}.{name}": tensor for name, tensor in _inside(part, model.named_buffers())}
    if wrong:
        raise ZippkitError("\n".join(wrong))
    return found


def _inside(part: str, named: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    return ((name.removeprefix(f"{part}."), tensor) for name, tensor in named if part_of(name) == part)


def check_stages(recipe: Recipe) -> None:
    """Compare the stages' rules with the parameters, on a model without values, before anything is trained.

    Raises:
        ZippkitError: rules that do not fit, and stages in which they leave nothing to train; tells of every stage.
    """
    ruled = [each for each in recipe.main_phases if isinstance(each.phase, Stage) and each.phase.freeze]
    wrong: list[str] = []
    for label, _, phase in ruled:
        assert isinstance(phase, Stage)
        model = compile(recipe.spec, device="meta").model
        try:
            Rest(phase.freeze).begin(model)
        except ZippkitError as error:
            wrong += [f"{label}: {line}" for line in str(error).splitlines()]
            continue
        if not any(parameter.requires_grad for parameter in model.parameters()):
            wrong.append(f"{label}: everything is frozen, so there is nothing to train in this stage")
    if wrong:
        raise ZippkitError("\n".join(wrong))


@dataclass
class Rest:
    """What rests in one phase, and the hashes that it had when the phase began."""

    freeze: Freeze = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    here: Mapping[str, str] = field(default_factory=dict)
    """What they are compared with: of what ranks share, this one's rows."""

    def begin(self, model: ZippedModel) -> None:
        """Let the parts rest.

        Raises:
            ZippkitError: rules that do not fit.
        """
        for tensor in resting(model, self.freeze).values():
            tensor.requires_grad_(False)

    def look(self, model: ZippedModel, known: Mapping[str, str] | None = None) -> None:
        """Note how the parts are now that the phase begins; ``known`` is what was noted at an earlier start."""
        self.hashes = known if known is not None else fingerprint(self._values(model).items())
        self.here = self.hashes
        self.check(model)

    def share(self, model: ZippedModel) -> None:
        """From now on, ranks share the model, which was looked at just before."""
        self.here = hashes_here(self.hashes, resting(model, self.freeze))

    def _values(self, model: ZippedModel) -> dict[str, Tensor]:
        """What rests, but for towers that have no values yet, which the spec freezes, and which are proved with it."""
        return {name: tensor for name, tensor in resting(model, self.freeze).items() if not tensor.is_meta}

    def check(self, model: ZippedModel) -> None:
        """Compare what rests with what it was when the phase began.

        Raises:
            ZippkitError: names what moved.
        """
        after = fingerprint(self._values(model).items())
        moved = [name for name, digest in self.here.items() if name in after and after[name] != digest]
        if moved:
            shown = ", ".join(moved[:5]) + (f" and {len(moved) - 5} more" if len(moved) > 5 else "")
            raise ZippkitError(f"what a stage freezes must not change in it: {shown} moved")
