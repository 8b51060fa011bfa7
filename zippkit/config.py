"""What a tower's and a link's configuration can tell without torch: shapes, frames, and whether they fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Unknown keys, converted types and infinite numbers are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds a {type(data).__name__}; expected an object with keys")
    return data


class Frame(Strict):
    """The two tokens that open and close each segment of a tower."""

    begin: int = Field(ge=0, description="Token that opens a segment.")
    end: int = Field(ge=0, description="Token that closes a segment; generation of the segment stops here.")


class TowerConfig(Strict):
    """Base of every tower's ``Config``. Keep it in a file without torch and ``zippkit check`` stays fast."""

    implementation: ClassVar[str] = ""
    """``module:Class`` of the Tower, where an entry point names this Config instead of the Tower itself."""
    causal: ClassVar[bool] = True
    """False: a position sees its whole segment, and others see the segment once it is complete."""

    dim: int = Field(gt=0, description="Width of the hidden states.")
    n_layers: int = Field(gt=0, le=10_000, description="Number of layers; depth runs from 0 (the embedding) to this.")
    vocab_size: int | None = Field(None, gt=0, description="Number of token ids; none for continuous inputs.")
    max_len: int | None = Field(None, gt=0, description="Longest sequence of this tower's own tokens, in tokens.")
    frame: Frame | None = Field(None, description="Begin and end ids; the spec's `frame` goes before it.")

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Config of the pre-trained model in ``folder``; here, from the ``tower.json`` that zippkit writes.

        Raises:
            ValueError: this kind of tower cannot tell its config from this folder.
        """
        file = folder / "tower.json"
        if not file.exists():
            raise ValueError(
                f"{folder} does not tell its config ({file.name} is missing); write `config:` into the spec"
            )
        return cls.model_validate(read_json(file).get("config"))

    def parameter_names(self) -> list[str] | None:
        """The tower's parameter names, so that freeze rules are checked without torch; None: checked at compile."""
        return None


class LinkConfig(Strict):
    """Base of every link's ``Config``."""

    implementation: ClassVar[str] = ""
    """``module:Class`` of the Link, where an entry point names this Config instead of the Link itself."""

    def misfits(self, source: TowerConfig, target: TowerConfig) -> Iterator[str]:
        """One message for each way in which this link cannot join the two towers' shapes."""
        del source, target
        yield from ()
