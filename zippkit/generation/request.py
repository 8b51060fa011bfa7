"""A request for generation: settings that are the same for every row, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, cast

import torch
from torch import Tensor

from zippkit.batch.batch import Segment, TowerBatch
from zippkit.composition import Composition
from zippkit.errors import ZippkitError
from zippkit.generation.length_limits import LengthLimits, Turn
from zippkit.model.decoding_state import Decoding
from zippkit.model.decoding_steps import Steps
from zippkit.model.inference import is_recorded, run_recorded
from zippkit.model.zipped_model import ZippedModel
from zippkit.plan.graph import Graph
from zippkit.plan.plan import Plan
from zippkit.plan.sequence_layout import Modality
from zippkit.spec.kinds import Frame
from zippkit.spec.sampling import Sampling

Prompt: TypeAlias = Sequence[Segment]
Watch: TypeAlias = Callable[[str, dict[int, tuple[int, int]], Tensor], None]
"""Called before a token is chosen: with a modality; for each row that it advances, the number of its segment and how
many tokens of it there are, its begin included; and the logits (N, V) of its tower, by the number of the row."""


@dataclass(frozen=True)
class Request:
    """The composition that generates, and how it chooses and ends segments of each modality."""

    zipped: Composition
    max_tokens: Mapping[str, int]
    """Longest segment of each modality, begin and end ids not counted."""
    sampling: Mapping[str, Sampling]
    choices: Sequence[str] = ()
    """Modalities among which the model itself chooses what comes next."""
    watch: Watch | None = None
    packed: bool = True
    """Whether steps of one token read a copy of the weights, laid out for that."""
    outputs: Sequence[str] = ()
    """What rows that are added generate, unless they say something else."""
    prefill_chunk: int = 512
    """Tokens of prompts of added rows that are run before each step of the others."""
    max_rows: int | None = None
    """Rows that are added wait while so many run."""
    compile: bool = False
    """Whether these steps are compiled."""

    @cached_property
    def graph(self) -> Graph:
        """The composition's graph."""
        return self.zipped.graph

    @cached_property
    def model(self) -> ZippedModel:
        """The composition's module."""
        return self.zipped.model

    @cached_property
    def modalities(self) -> dict[str, Modality]:
        """The graph's modalities by name, which the graph would make anew for each call."""
        return self.graph.modalities

    @cached_property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return next(self.model.parameters()).device

    @cached_property
    def limits(self) -> LengthLimits:
        """How long segments can get in the towers."""
        return LengthLimits(self.graph)

    @cached_property
    def _steps(self) -> Steps | None:
        compile = self.compile or is_recorded(self.device)
        return Steps(self.model.forms, compile) if self.packed or compile else None

    def run(
        self, plan: Plan, inputs: Mapping[str, TowerBatch], multimodal: Tensor | bool, decoding: Decoding
    ) -> dict[str, Tensor]:
        """Run new tokens; see `ZippedModel.run`."""
        model, found = self.model, None
        if self._steps is not None:
            found = self._steps.run(model.modules_of, plan, inputs, multimodal, decoding)
        if found is None:
            found = model.run(plan, inputs, multimodal, decoding)
        run_recorded(self.device)
        return found

    def frame(self, modality: str) -> Frame:
        """Begin and end in the modality's own ids."""
        return cast("Frame", self.modalities[modality].frame)

    def frame_ids(self, modality: str) -> tuple[int, int]:
        """Begin and end in the tower's ids."""
        first_id, frame = self.modalities[modality].first_id, self.frame(modality)
        return first_id + frame.begin, first_id + frame.end

    def towers(self, turns: Iterable[Turn]) -> list[str]:
        """The towers of some turns, once for each segment."""
        modalities = self.modalities
        return [modalities[name].tower for turn in turns for name in turn]

    def turn_of(self, modality: str) -> Turn:
        """The turn that a chosen modality takes: together with the one that has its clock, if there is one."""
        partners = [other for other in self.choices if self.graph.layout.simultaneous(modality, other)]
        return tuple(sorted([modality, *partners[:1]], key=list(self.modalities).index))

    def check_beams(self, turns: Iterable[Turn]) -> None:
        """Refuse beam search where two modalities advance together.

        Args:
            turns: those that are asked for; those that the model may choose are added.

        Raises:
            ZippkitError: a beam width over 1 in such a turn.
        """
        for names in {self.turn_of(name) for name in self.choices} | set(turns):
            if len(names) > 1 and any(self.sampling[name].beams > 1 for name in names):
                raise ZippkitError(f"beams: {' and '.join(names)} advance together; expected beams: 1 for them")
