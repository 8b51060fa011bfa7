"""The composition spec: towers, the links between them, and the losses besides that of the tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from pydantic import Field, model_validator

from zippkit.errors import did_you_mean
from zippkit.spec.kinds import Strict
from zippkit.spec.link_spec import LinkSpec
from zippkit.spec.part_sections import Contrast, Next
from zippkit.spec.shared_weights import with_shared
from zippkit.spec.tower_spec import TowerSpec
from zippkit.spec.validation import Complaint
from zippkit.spec.words import TAKEN_NAMES, Name


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
        """What later stages have worked out about this spec, which never changes: its graph. A copy starts empty."""
        return {}

    @property
    def modalities(self) -> dict[str, str]:
        """Everything that a segment can be of, and the tower that reads it: towers, and what they host."""
        hosted = {name: host for host, tower in self.towers.items() for name in tower.extend_vocabulary}
        return {name: name for name in self.towers} | hosted

    def complaints(self) -> Iterator[Complaint]:
        """Everything wrong below the level of keys and types: kinds, configs, names, frames, freeze rules, shapes."""
        for name, tower in self.towers.items():
            if name in TAKEN_NAMES:
                yield ("towers", name), f"{name!r} means something else in a model; call the tower otherwise"
            # What it has from another tower is told there.
            for key_path, message in tower.complaints() if tower.share_with not in self.towers else ():
                yield ("towers", name, *key_path), message
        for i, link in enumerate(self.links):
            for key_path, message in self._link_complaints(link):
                yield ("links", i, *key_path), message
        counts = Counter(link.label for link in self.links)
        for i, link in enumerate(self.links):
            if link.label in TAKEN_NAMES:
                yield ("links", i, "name"), f"{link.label!r} means something else in a model; call the link otherwise"
            if counts[link.label] > 1:
                yield ("links", i), f"{counts[link.label]} links are called {link.label!r}; give each a distinct `name`"

    def _link_complaints(self, link: LinkSpec) -> Iterator[Complaint]:
        for key, tower in (("from", link.source), ("into", link.target)):
            if tower not in self.towers:
                yield (key,), f"no tower is called {tower!r}{did_you_mean(tower, self.towers)}"
        yield from link.complaints()
        config = link.resolved[0]
        if config is None or link.source not in self.towers or link.target not in self.towers:
            return
        source, target = (self.towers[name].resolved[0] for name in (link.source, link.target))
        if source is not None and target is not None:
            for message in config.misfits(source, target):
                yield ("config",), message
