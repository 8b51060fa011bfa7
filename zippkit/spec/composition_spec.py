"""The composition spec: towers, the links between them, and the losses besides that of the tokens."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from pydantic import Field, model_validator

from zippkit.spec.kinds import Strict
from zippkit.spec.link_spec import LinkSpec
from zippkit.spec.part_sections import Contrast, Next
from zippkit.spec.shared_weights import with_shared
from zippkit.spec.tower_spec import TowerSpec
from zippkit.spec.words import Name


class CompositionSpec(Strict):
    """Towers and the links between them."""

    name: Name = Field(description="Name of the composition.")
    towers: dict[Name, TowerSpec] = Field(min_length=1, description="Towers by name.")
    links: list[LinkSpec] = Field(
        default_factory=list, description="Links, in the order in which they act on a shared site."
    )
    contrastive: list[Contrast] = Field(
        default_factory=list, description="Contrastive losses between towers, besides the loss on tokens."
    )
    next: Next | None = Field(
        None,
        description="With `next: {}`, the model learns which modality comes after a segment, or that nothing does.",
    )

    @model_validator(mode="before")
    @classmethod
    def _shared(cls, data: Any) -> Any:
        return with_shared(data)

    @cached_property
    def kept(self) -> dict[str, Any]:
        """Cache of results that follow from this spec, which never changes: its graph. A copy starts empty."""
        return {}

    @property
    def modalities(self) -> dict[str, str]:
        """Everything that a segment can be of, and the tower that reads it: towers, and what they host."""
        hosted = {name: host for host, tower in self.towers.items() for name in tower.extend_vocabulary}
        return {name: name for name in self.towers} | hosted
