"""Base classes of the configurations of towers and links, which say without torch whether they fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field

from zippkit.system.files import parse_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOWER_FILE = "tower.json"
"""Beside the weights of a tower by itself: its kind, its config, and the SHA-256 of each file of weights."""


MAX_WIDTH = 2**20
"""Of states, heads and hidden layers: twenty times the widest model's, and no product of three of them overflows."""
MAX_IDS = 2**31 - 1


class Strict(BaseModel):
    """Unknown keys, converted types and infinite numbers are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, but what was worked out from the old values (cached properties) is worked out anew."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(copied).model_fields.keys():
            del copied.__dict__[name]
        return copied


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        data = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds a {type(data).__name__}; expected an object with keys")
    return data


class Frame(Strict):
    """The tokens that open and close each segment of a tower.

    One and the same for a model that was trained with a single token between its texts, as GPT-2 was.
    """

    begin: int = Field(ge=0, description="Token that opens a segment.")
    end: int = Field(ge=0, description="Token that closes a segment; generation of the segment stops here.")


DROPOUT = "Part of what each attention and feed-forward gives that training drops, before it is added."
"""Describes the field `dropout`, which changes what is trained but no tensor: parts that differ in it are the same."""


class AttentionShape(NamedTuple):
    """The heads of a tower's attention; two towers share theirs where key heads and widths are the same."""

    n_kv_heads: int
    head_width: int


class Sound(NamedTuple):
    """Waveforms (samples,) of one channel, full scale at +-1."""

    sample_rate: int
    """In Hz."""


class Image(NamedTuple):
    """Pixels (channels, height, width), from -1 to 1."""

    channels: int
    height: int
    width: int


class Frames(NamedTuple):
    """Frames of floats (N, ...), such as a sensor's readings."""

    shape: tuple[int, ...]
    """Of one frame."""
    least: float | None = None
    """Smallest value that the tower takes, if it minds."""
    most: float | None = None
    """Largest value."""


class TowerConfig(Strict):
    """Base of every tower's ``Config``. Keep it in a file without torch and ``zippkit check`` stays fast."""

    implementation: ClassVar[str] = ""
    """``module:Class`` of the Tower, where an entry point names this Config instead of the Tower itself."""
    causal: ClassVar[bool] = True
    """False: a position sees its whole segment, and others see the segment once it is complete."""
    weights_suffixes: ClassVar[tuple[str, ...]] = (".safetensors",)
    """Of the files, besides folders, that the tower's `load_weights` reads."""

    dim: int = Field(gt=0, le=MAX_WIDTH, description="Width of the hidden states.")
    n_layers: int = Field(gt=0, le=10_000, description="Number of layers; depth runs from 0 (the embedding) to this.")
    vocab_size: int | None = Field(
        None, gt=0, le=MAX_IDS, description="Number of token ids; none for continuous inputs."
    )
    max_len: int | None = Field(None, gt=0, description="Longest sequence of this tower's own tokens, in tokens.")
    frame: Frame | None = Field(None, description="Begin and end ids; the spec's `frame` goes before it.")

    @property
    def continuous(self) -> bool:
        """Whether it is fed floats (sound, pixels, frames) instead of token ids: no vocabulary, frame, head or loss.

        A config of nothing else says ``continuous: ClassVar[bool] = True``.
        """
        return False

    @property
    def predicts(self) -> bool:
        """Whether it has a head: logits of its next token. An encoder has states alone, and no loss is asked on it."""
        return not self.continuous

    @property
    def feed(self) -> Sound | Image | Frames | None:
        """The inputs of a continuous tower, which data are compared with; None: token ids, or it does not tell."""
        return None

    @property
    def shared_attention(self) -> AttentionShape | None:
        """The attention that other towers can join (`zippkit.model.tower.SharedAttention`); None if there is none."""
        return None

    @classmethod
    def runs(cls, model_type: str) -> bool:
        """Whether another library's models of this name are of this kind, for whoever writes the name as a ``kind``."""
        del model_type
        return False

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Config of the pre-trained model in ``folder``; here, from the ``tower.json`` that zippkit writes.

        Raises:
            ValueError: this kind of tower cannot tell its config from this folder.
        """
        file = folder / TOWER_FILE
        if not file.exists():
            raise ValueError(
                f"{folder} does not tell its config ({file.name} is missing); write `config:` into the spec"
            )
        return cls.model_validate(read_json(file).get("config"))

    @classmethod
    def told_by(cls, folder: Path, kind: str) -> Self:
        """Config of the model in ``folder``: its ``tower.json`` if it is of this kind, else `from_folder`.

        A ``tower.json`` goes before a Hugging Face ``config.json`` beside it.

        Raises:
            ValueError: the folder does not tell.
        """
        file = folder / TOWER_FILE
        own = read_json(file) if file.exists() else {}
        return cls.model_validate(own.get("config")) if own.get("kind") == kind else cls.from_folder(folder)

    def weights_path(self) -> Path | None:
        """Path of the pre-trained weights, if the config itself tells; the spec's `weights` goes before it.

        Raises:
            ValueError: they are not there.
        """
        return None

    @property
    def names_weights(self) -> bool:
        """Whether the config itself names pre-trained weights, which need not be fetched for the answer."""
        return type(self).weights_path is not TowerConfig.weights_path

    def n_states(self, values: NDArray[np.float32]) -> int:
        """Number of states that a continuous tower makes of one segment's inputs.

        Raises:
            ValueError: inputs of another shape than the tower takes, or too short for a single state.
        """
        raise NotImplementedError(f"{type(self).__name__} is not continuous")

    def example_inputs(self, size: int, seed: int) -> NDArray[np.float32]:
        """Random inputs of a continuous tower, for its checks: about ``size`` states where their number can vary."""
        raise NotImplementedError(f"{type(self).__name__} is not continuous")

    def parameter_names(self) -> list[str] | None:
        """The tower's parameter names, so that freeze rules are checked without torch; None: checked at compile."""
        return None

    def linear_shapes(self) -> Mapping[str, tuple[int, int]] | None:
        """(outputs, inputs) of the weight of each linear map, by parameter name.

        With them adapters are checked without torch; None: checked at compile.
        """
        return None


Acts = Literal["after_layer", "before_layer", "embedding", "attention"]
"""Where a link acts: on the state after the target's layer, or on the one before it; on slots among the target's own
tokens, at its embedding; or inside the attention of the target's layer, which then sees the source's keys too."""


class LinkConfig(Strict):
    """Base of every link's ``Config``."""

    implementation: ClassVar[str] = ""
    """``module:Class`` of the Link, where an entry point names this Config instead of the Link itself."""
    projects: ClassVar[bool] = True
    """False: the link has no use for the spec's ``projection``."""

    @property
    def acts(self) -> Acts:
        """Where the link acts; see `Acts`."""
        return "after_layer"

    @property
    def by_segment(self) -> bool:
        """Whether a source's segment is read as a whole, once it is complete."""
        return self.acts == "embedding"

    def projected_dim(self, source_dim: int) -> int:
        """Width of what the projection is given."""
        return source_dim

    def n_slots(self, n_tokens: int) -> int:
        """Number of slots that a source's segment takes in the target's own sequence.

        Only for a link that acts on the embedding.

        Args:
            n_tokens: of the segment, begin and end included.
        """
        raise NotImplementedError(f"{type(self).__name__} takes no slots in the target's sequence")

    def misfits(self, source: TowerConfig, target: TowerConfig) -> Iterator[str]:
        """One message for each way in which this link cannot join the two towers' shapes."""
        del source, target
        yield from ()
