"""The key `cache_sources` of a phase: where the states of frozen source towers are kept, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from zippkit.spec.kinds import Strict


class SourceCaching(Strict):
    """A folder of states of frozen towers that links read, each computed once."""

    folder: Annotated[Path, Field(strict=False)] | None = Field(
        None, description="Any folder, which several runs may share; `source_states` in the run if left out."
    )
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Of the kept states; fp32 is exact, the others take half the room."
    )
    limit: float | None = Field(
        None, gt=0, description="Most GB that the states may take; a run that would need more is refused."
    )


def _settings(value: Any) -> Any:
    """``true`` and a bare path as the section that they stand for."""
    if isinstance(value, bool):
        return {} if value else None
    return {"folder": value} if isinstance(value, str | Path) else value


CacheSources = Annotated[
    SourceCaching | None, BeforeValidator(_settings, json_schema_input_type=bool | str | SourceCaching | None)
]
