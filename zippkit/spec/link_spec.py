"""A link's section of the spec: which tower reads which, at which sites, and through what."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from zippkit.spec import registry
from zippkit.spec.kinds import LinkConfig, Strict
from zippkit.spec.part_sections import Projection
from zippkit.spec.validation import Complaint, validate
from zippkit.spec.words import Name


class Site(Strict):
    """One place where a link acts: the target reads, after its layer `into`, the source as it is after layer `from`."""

    source: int = Field(alias="from", ge=0, description="Source depth; 0 is its embedding.")
    target: int = Field(
        alias="into",
        ge=0,
        description="Target layer: acts after it (or before it, or inside it, as the kind does); 0 is the embedding.",
    )


class LinkSpec(Strict):
    """A declared connection: the tower `into` reads the tower `from`."""

    kind: str = Field(description="Registered kind of link (`zippkit links` lists them).")
    source: str = Field(alias="from", description="The tower that is read.")
    target: str = Field(alias="into", description="The tower that is rewritten.")
    name: Name | None = Field(
        None, description="Needed where two links join the same towers; `<from>_to_<into>` if left out."
    )
    every: int | None = Field(None, gt=0, description="Act after target layers i, 2i, 3i, ...")
    source_every: int | None = Field(
        None,
        gt=0,
        description="Read the source after layers j, 2j, ...; the same relative depth if left out, rounded half up: of "
        "a source of 3 layers, layer 2 for layer 1 of 2. The source's bare embedding only for the target's.",
    )
    source_depth: Literal["final", "embedding"] | None = Field(
        None,
        alias="source",
        description="`final` reads the finished source at every site (Flamingo), `embedding` its bare tokens.",
    )
    sites: list[Site] | None = Field(None, min_length=1, description="Explicit sites instead of `every`.")
    projection: Projection = Field(default_factory=Projection, description="The MLP on the source's states.")
    freeze: bool = Field(
        False, description="Keep its values: for a link that is taken from another run, or trained in another stage."
    )
    clock: Literal["turns", "sync"] = Field(
        "turns",
        description="`sync`: neighbouring segments of the two towers are simultaneous, token by token, and each tower "
        "sees the other's tokens up to the same time (dGSLM).",
    )
    config: dict[str, Any] = Field(default_factory=dict, description="The kind's own settings.")

    @property
    def label(self) -> str:
        return self.name or f"{self.source}_to_{self.target}"

    @cached_property
    def resolved(self) -> tuple[LinkConfig | None, list[Complaint]]:
        """The link's own Config, or what is wrong, placed inside this section."""
        try:
            cls: type[LinkConfig] = registry.config_class(registry.LINKS, self.kind)
        except registry.UnknownKindError as error:
            return None, [(("kind",), str(error))]
        return validate(cls, self.config, ("config",))

    @property
    def settings(self) -> LinkConfig:
        """The link's own Config; only for a spec without problems."""
        config, complaints = self.resolved
        if config is None:
            raise ValueError(str(complaints))
        return config
