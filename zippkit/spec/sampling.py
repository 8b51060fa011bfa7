"""How generation chooses tokens, and how many at most."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from zippkit.spec.kinds import Strict

MOST_TOKENS = 131_072
"""Of one generated segment. A number typed wrong would take all memory in the end."""


class Sampling(Strict):
    """Decoding settings of one modality. The defaults are greedy decoding."""

    temperature: float = Field(0.0, ge=0, description="Logits are divided by it; 0 takes the likeliest token.")
    top_k: int | None = Field(None, gt=0, description="Only so many of the likeliest tokens are drawn from.")
    top_p: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Only the likeliest tokens of this much probability together (arXiv 1904.09751).",
    )
    repetition_penalty: float = Field(
        1.0,
        gt=0,
        description="Logits of tokens that the row has had, begin and end included, are divided by it if positive, "
        "else multiplied; beams multiply log-probabilities. As in transformers.",
    )
    beams: int = Field(1, gt=0, le=256, description="Hypotheses of a beam search; 1 is none.")
    length_penalty: float = Field(
        1.0,
        ge=-10,
        le=10,
        description="A hypothesis of n tokens, its end counted, scores log-probability / n ** length_penalty.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.beams > 1 and self.temperature > 0:
            raise ValueError(f"beams {self.beams} take the likeliest; expected temperature 0, got {self.temperature}")
        if self.temperature == 0 and (self.top_k or self.top_p):
            raise ValueError("top_k and top_p say what is drawn from; expected a temperature above 0 with them")
        return self
