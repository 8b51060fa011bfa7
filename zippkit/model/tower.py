"""The tower protocol: one modality's stack of layers, run one layer at a time, with a cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from zippkit.batch.batch import TowerBatch
from zippkit.model.visibility import Mask
from zippkit.model.weights import load_into, read_tensors
from zippkit.spec.kinds import TowerConfig

ROUTER = "router."
"""Begins the name of the loss of a tower's own routing, such as `router.text`."""


Cache = TypeVar("Cache", default=Any)
"""A tower's own KV cache (`Tower.new_cache`)."""
Context = TypeVar("Context", default=Any)
"""Whatever a tower's layers need besides the states (`Tower.start`)."""


class Exported(NamedTuple):
    """A tower as an exported model has it (`zippkit.training.hf_export`)."""

    kind: str
    """The part of the modeling file that computes it: a module of `zippkit.training.hf_parts`."""
    settings: dict[str, Any]
    """What that part is built from, as plain data."""
    prefix: str = ""
    """Stands before the names of its tensors there."""
    tensors: Mapping[str, Tensor] = {}
    """Tensors that it has there besides this tower's own."""


class Tower(nn.Module, ABC, Generic[Cache, Context]):
    """Base of every tower. Subclass it, name its ``Config``, write `start`, `layer` and `head`.

    A ``class Imu(Tower[list[Tensor], ImuContext])`` has its cache and its context checked by mypy; plain ``Tower``
    leaves them open.
    """

    Config: ClassVar[type[TowerConfig]]
    made_by_weights: ClassVar[bool] = False
    """True: where weights are to be loaded, the tower is built without values (on the meta device), and `load_weights`
    brings its first ones, as new parameters if need be; a tower that has values is always filled in place."""
    takes_description: ClassVar[bool] = False
    """True: `start` is given no mask, and what the tokens see is described by `zippkit.model.visibility.own_visibility`
    and, of a cache, `cache_visibility`, which need no table of (B, T, S)."""

    takes_branches: ClassVar[bool] = False
    """True: a row's new tokens may be continuations of it in several ways (`zippkit.batch.batch.Branches`), which are
    written into ``inputs.slots`` of a `zippkit.model.kv_cache.RowCache`; beams then copy no cache."""

    router_weight: float = 0.0
    """Weight of `router_loss` beside the loss of tokens; 0: the tower has none."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config

    computes: torch.dtype | None = None
    """Dtype of its states, where some of its weights are held in another one for a while; None: that of its weights."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its parameters; `layer` and `head` are given states of it."""
        return self.computes or next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.float32)

    @abstractmethod
    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Cache | None = None) -> tuple[Tensor, Context]:
        """Embed the new tokens.

        Args:
            inputs: the new tokens, (B, T) each: ``tokens``, ``positions`` and more.
            mask: (B, T, S) bool, True where a token may attend; S counts the cache's slots, of which slot ``i`` holds
                position ``i``, and None stands for plain causal attention over the T tokens themselves (or, if the
                tower `takes_description`, for what that says).
            cache: what `new_cache` gave, or None; layers write the new tokens' keys and values into it.

        Returns:
            The state at depth 0, (B, T, D), and whatever `layer` needs besides it.
        """

    @abstractmethod
    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        """Run layer ``index`` (from 0) on (B, T, D) states."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Logits (B, T, V) from the last layer's states, final norm included."""

    def placed(self, states: Tensor, inputs: TowerBatch) -> Tensor:
        """Add positions to states (B, T, D) that come from elsewhere than the embedding, as `start` would have.

        A tower that adds learned positions to its embedding adds them here.
        """
        del inputs
        return states

    def layer_modules(self) -> Sequence[nn.Module]:
        """For each layer a module that has its parameters, which are used in calls of that module alone.

        Where attention is shared, they are used in calls of the module's ``project`` and ``close``. A tower that names
        such modules can be held in parts that are brought together layer by layer; any other one as a whole.
        """
        return ()

    def check(self) -> None:
        """Check, once the tower is built and its weights are loaded, that it can be run as it should.

        Raises:
            CheckpointError: it would run wrong.
        """

    def apart(self) -> str:
        """Make every token's result independent, to the last bit, of what else is in the batch, however slow that is.

        Certificates that compare bits ask it of a copy.

        Returns:
            In words, what is run in another way than usual; empty if nothing is.
        """
        return ""

    def router_loss(self, inputs: TowerBatch, context: Context) -> Tensor | None:
        """Load-balancing loss of a mixture of experts that is trained, over the tokens that just passed the layers.

        It counts `router_weight` times in the total loss; None where there is none.

        Args:
            inputs: the tokens, as `start` had them; padding does not count.
            context: what `start` gave, and the layers saw.
        """
        del inputs, context
        return None

    def new_cache(self, batch_size: int, max_len: int) -> Cache:
        """Allocate an empty KV cache of ``max_len`` slots in each row.

        One that is a `zippkit.model.kv_cache.RowCache` is asked for with few slots and grows; any other one with as
        many as it can come to need.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot generate: it has no cache")

    def reorder_cache(self, cache: Cache, rows: Tensor) -> Cache:
        """Copy the (N,) rows of a cache into a new one, each as often as it is named; for beam search."""
        raise NotImplementedError(f"{type(self).__name__} has no beam search: it cannot reorder its cache")

    @classmethod
    def hugging_face(cls, config: Any) -> dict[str, Any] | None:
        """The ``config.json`` with which transformers loads this kind's tensors and computes the same logits.

        ``transformers.AutoModelForCausalLM`` finds them under the names that they have here; None where it has no such
        architecture.

        Args:
            config: of a tower of this kind.
        """
        del config
        return None

    def exported(self) -> Exported | None:
        """How an exported model computes the same without zippkit; None where nobody has written that down."""
        return None

    def mapped_weights(self, path: Path) -> Mapping[str, Tensor] | None:
        """The tensors that `load_weights` copies, mapped from the files and not read, under this tower's own names.

        Ranks that share a tower read only their rows of them. None: only `load_weights` knows how it is read, so each
        rank reads all of it.

        Raises:
            CheckpointError: cut short, or not safetensors.
        """
        return read_tensors(path, check=False) if type(self).load_weights is Tower.load_weights else None

    def load_weights(self, path: Path) -> None:
        """Copy pre-trained weights from a safetensors file, or a folder of them, under this tower's own names.

        Values are filled in place: parameters, buffers and modules stay the objects that they are, since freezing,
        optimizers and adapters hold on to them (`zippkit.model.weights.filled_in_place`).

        Raises:
            CheckpointError: cut short, not safetensors, or names and shapes that differ, all of which are named.
        """
        load_into(self, read_tensors(path), str(path))


class Projected(NamedTuple):
    """Queries, keys and values of one layer's attention."""

    queries: Tensor
    """(B, H, T, K), positions applied."""
    keys: Tensor
    """(B, H_kv, T, K), positions applied."""
    values: Tensor
    """(B, H_kv, T, K)"""


class SharedAttention(ABC, Generic[Context]):
    """A layer in three parts, for a Tower whose attention others can join (`TowerConfig.shared_attention`).

    Together they do what `Tower.layer` does. Position ids are ``inputs.position_ids``.
    """

    @abstractmethod
    def project(self, index: int, hidden: Tensor, context: Context) -> Projected:
        """Queries, keys and values of the new tokens, from (B, T, D) states."""

    @abstractmethod
    def remember(self, index: int, projected: Projected, context: Context) -> tuple[Tensor, Tensor, Mask]:
        """Keys and values (B, H_kv, S, K) of all tokens so far, and the mask (B, T, S); None is plain causal."""

    @abstractmethod
    def close(self, index: int, hidden: Tensor, attended: Tensor, context: Context) -> Tensor:
        """The layer's state (B, T, D), from the one before it and what was attended to, (B, T, H * K)."""


class TowerForm(Protocol):
    """A tower's layers and head for one token of each row."""

    def layer(self, index: int, hidden: Tensor, context: Any) -> Tensor:
        """Run layer ``index`` on (B, D) states, with the context that the tower's own `Tower.start` gave."""

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (B, V) from the last layer's states (B, D)."""


@runtime_checkable
class HasTowerForm(Protocol):
    """A tower that has a twin."""

    def decoding_form(self, blocked: bool) -> TowerForm | None:
        """The twin, of the weights as they are now; None where it would compute something else.

        Args:
            blocked: whether weights may be laid out as oneDNN has them; False where the twin is to be compiled.
        """
