"""The sections of the spec that ask for parts: projections, added ids, LoRA, contrastive losses, the next modality."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import Field, field_validator

from zippkit.spec.kinds import MAX_IDS, MAX_WIDTH, Frame, Strict
from zippkit.spec.words import Activation, Name


class Projection(Strict):
    """The MLP on the source's states inside a link, from the source's width to the target's."""

    depth: int = Field(3, ge=1, le=16, description="Linear layers; 1 is a linear map. The paper's is 3.")
    width: int | None = Field(None, gt=0, le=MAX_WIDTH, description="Hidden width; the target's width if left out.")
    activation: Activation = Field("relu", description="Between the linear layers.")
    share: Literal["none", "sites", "directions"] = Field(
        "none",
        description="One projection for each site; `sites`: one for all sites of the link; `directions`: one for all "
        "links between the two towers, which must be of one width.",
    )


class InputProjection(Strict):
    """The MLP right after a tower's embedding. Rows pass through it, those of tasks with one modality around it."""

    depth: int = Field(2, ge=1, le=16, description="Linear layers. The paper's is 2.")
    width: int | None = Field(None, gt=0, le=MAX_WIDTH, description="Hidden width; the tower's width if left out.")
    activation: Activation = Field(
        "relu", description="After each linear layer; not after the last one where the MLP is residual."
    )
    residual: bool = Field(
        True,
        description="Add the MLP to the embedding, starting at zero; false replaces the embedding, as the paper does.",
    )
    freeze: bool = Field(False, description="Keep its values, such as those of another run.")


class Vocabulary(Strict):
    """Token ids that a tower is given besides its own."""

    size: int = Field(ge=2, le=MAX_IDS, description="Number of ids, begin and end included.")
    begin: int | None = Field(None, ge=0, description="Id that opens a segment; the last but one if left out.")
    end: int | None = Field(None, ge=0, description="Id that closes a segment; the last if left out.")

    @property
    def frame(self) -> Frame:
        begin = self.size - 2 if self.begin is None else self.begin
        return Frame(begin=begin, end=self.size - 1 if self.end is None else self.end)


class Lora(Strict):
    """Low-rank adapters on linear maps that are frozen (LoRA)."""

    rank: int = Field(8, gt=0, description="Width between the two maps of an adapter.")
    alpha: float = Field(16.0, gt=0, description="What an adapter adds is scaled by alpha / rank.")
    pattern: str | list[str] | None = Field(
        None,
        description="Weights that get an adapter, as `layers.*.self_attn.*`, or a list of such patterns; or name them "
        "in `freeze` by `lora`.",
    )

    @field_validator("pattern", mode="plain", json_schema_input_type=str | list[str] | None)
    @classmethod
    def _pattern(cls, value: Any) -> str | list[str] | None:
        """One message instead of one for each member of the union."""
        listed = isinstance(value, list) and bool(value) and all(isinstance(each, str) and each for each in value)
        if value is None or listed or (isinstance(value, str) and value):
            return cast("str | list[str] | None", value)
        raise ValueError("expected a name pattern or a list of them")

    @property
    def patterns(self) -> list[str]:
        return [self.pattern] if isinstance(self.pattern, str) else list(self.pattern or ())

    def misfit(self, name: str, shape: tuple[int, int] | None, kind: str = "") -> str:
        """Say why a weight cannot have an adapter; empty if it can.

        Args:
            name: of the weight.
            shape: (outputs, inputs) of its linear map; None where it is of something else.
            kind: what that is, if known.
        """
        if shape is None:
            return f"{name!r} is not the weight of a linear map" + (f" but of {kind}" if kind else "")
        if self.rank > min(shape):
            return f"rank {self.rank} is larger than a side of {name!r}, {shape[0]} x {shape[1]}"
        return ""


class Contrast(Strict):
    """A contrastive loss between two towers: a row's states of one are to find the same row's of the other (CoCa)."""

    source: str = Field(alias="from", description="A tower; its states are averaged over the row.")
    target: str = Field(alias="into", description="A tower; the state of the row's last token stands for the row.")
    source_depth: int | None = Field(None, ge=0, description="After how many layers; all if left out.")
    target_depth: int | None = Field(
        None, ge=0, description="After how many layers, before any link rewrites the state; all if left out."
    )
    width: int = Field(64, gt=0, le=MAX_WIDTH, description="Width in which the two are compared.")
    weight: float = Field(1.0, gt=0, description="Of this loss beside that of the tokens.")
    name: Name | None = Field(None, description="`<from>_<into>_contrast` if left out.")

    @property
    def label(self) -> str:
        return self.name or f"{self.source}_{self.target}_contrast"


class Next(Strict):
    """A small head on each tower's last states: at a segment's end it predicts the next modality, or that none follows.

    With it a model chooses modalities by itself: `zippkit.generate(..., outputs="auto")`.
    """

    weight: float = Field(1.0, gt=0, description="Of this loss, a mean over segments, beside that of the tokens.")
