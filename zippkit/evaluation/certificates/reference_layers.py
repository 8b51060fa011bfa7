"""The parts of the reference that certificate C11 holds a composition against: formulas, and the native decoder.

In float64 and plain loops, from the papers and the design; nothing here is imported from the modules that it judges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zippkit.spec.composition_spec import CompositionSpec

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
EPS = float(np.finfo(np.float64).eps)
"""Epsilon of the links' norms, which is that of their dtype."""
_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True)
class Token:
    """A place in a tower's own sequence."""

    id: int
    order: int
    """Place in the interleaved sequence: what it asks with."""
    visible: int
    """Order from which others may see it."""
    segment: int
    """Number of its segment in the row; of an inserted place, of the one that it stands for."""
    offset: int
    """Place within its segment."""
    inserted: bool = False


class Layers(Protocol):
    """A tower by itself, on the tokens of one row."""

    @property
    def n_layers(self) -> int:
        """Number of layers."""

    @property
    def causal(self) -> bool:
        """Whether a token sees none of the tower's later ones."""

    def embed(self, tokens: Sequence[Token]) -> Array:
        """Return the (T, D) embeddings."""

    def empty(self, tokens: Sequence[Token]) -> Array:
        """Return the (T, D) states of inserted places before their link fills them."""

    def layer(self, depth: int, x_TD: Array, places: Sequence[int], others: Sequence[Others]) -> Array:
        """Return the (T, D) states after layer ``depth`` (from 1)."""

    def keys(self, depth: int, x_TD: Array, places: Sequence[int]) -> tuple[Array, Array]:
        """Return keys and values of that layer, (T, H_kv * K) each."""

    def logits(self, x_TD: Array) -> Array:
        """Return the (T, V) logits of the last states."""


@dataclass(frozen=True)
class Others:
    """Keys and values of another tower, and who sees them."""

    keys: Array
    values: Array
    mask: Mask
    """(T, S)"""


def norm(x: Array, weight: Array, eps: float) -> Array:
    """RMSNorm (arXiv 1910.07467)."""
    return np.asarray(x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight, dtype=np.float64)


def softmax(x: Array) -> Array:
    """Softmax of a vector."""
    raised = np.exp(x - x.max())
    return np.asarray(raised / raised.sum(), dtype=np.float64)


def activate(name: str, x: Array) -> Array:
    """Apply the activation of that name to each entry."""
    if name == "relu":
        return np.maximum(x, 0)
    if name == "silu":
        return np.asarray(x / (1 + np.exp(-x)), dtype=np.float64)
    assert name == "gelu"
    return np.asarray(x * (1 + _erf(x / math.sqrt(2))) / 2, dtype=np.float64)


def apply_rotary(x_TK: Array, places: Sequence[float], theta: float) -> Array:
    """Rotate one head's queries or keys (arXiv 2104.09864): entries i and i + K/2 by place * theta^(-2i/K)."""
    half = x_TK.shape[1] // 2
    out = np.zeros_like(x_TK)
    for t, place in enumerate(places):
        for i in range(half):
            angle = place * theta ** (-2 * i / (2 * half))
            a, b = x_TK[t, i], x_TK[t, i + half]
            out[t, i] = a * math.cos(angle) - b * math.sin(angle)
            out[t, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attention(q_TK: Array, k_SK: Array, v_SK: Array, mask_TS: Mask) -> Array:
    """Attend with one head; a fully masked query returns 0."""
    out = np.zeros((len(q_TK), v_SK.shape[1]))
    for t in range(len(q_TK)):
        seen = [s for s in range(len(k_SK)) if mask_TS[t, s]]
        if seen:
            weights = softmax(np.array([q_TK[t] @ k_SK[s] for s in seen]) / math.sqrt(q_TK.shape[1]))
            out[t] = sum(w * v_SK[s] for w, s in zip(weights, seen, strict=True))
    return out


def head(x: Array, i: int, n_heads: int) -> Array:
    """Head ``i`` of so many."""
    width = x.shape[1] // n_heads
    return x[:, i * width : (i + 1) * width]


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and the low-rank changes that adapters make to them."""

    tensors: Mapping[str, Array]
    spec: CompositionSpec

    def __call__(self, name: str) -> Array:
        """Return the tensor of that name, changed by its adapter where it has one."""
        weight = self.tensors[name]
        part, _, rest = name.partition(".")
        tower, _, path = rest.partition(".")
        if part != "towers":
            return weight
        owner = self.spec.towers[tower].share_with or tower
        adapter = f"adapters.{owner}.{path.removesuffix('.weight').replace('.', '-')}"
        lora = self.spec.towers[owner].lora
        if lora is None or f"{adapter}.up" not in self.tensors:
            return weight
        return weight + lora.alpha / lora.rank * self.tensors[f"{adapter}.up"] @ self.tensors[f"{adapter}.down"]

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self.tensors

    def linear(self, name: str, x: Array) -> Array:
        """A linear map, with its bias where it has one."""
        out = x @ self(f"{name}.weight").T
        return out + self(f"{name}.bias") if self.has(f"{name}.bias") else out

    def mlp(self, name: str, x: Array, activation: str, last: bool = False) -> Array:
        """Linear maps ``name.0``, ``name.2``, ... with an activation between them, and behind the last one if asked."""
        for i in count(0, 2):
            x = self.linear(f"{name}.{i}", x)
            more = self.has(f"{name}.{i + 2}.weight")
            x = activate(activation, x) if more or last else x
            if not more:
                return x
        raise AssertionError


@dataclass(frozen=True)
class Decoder:
    """The native decoder: pre-norm attention with rotary places and grouped keys, SwiGLU (llama)."""

    name: str
    config: Any
    weights: Weights
    causal: bool = True

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return int(self.config.n_layers)

    @property
    def dim(self) -> int:
        """Width of a state."""
        return int(self.config.dim)

    def embed(self, tokens: Sequence[Token]) -> Array:
        """Return the (T, D) embeddings, those of added vocabulary included."""
        own, n = self.weights(f"towers.{self.name}.embed_tokens.weight"), self.config.vocab_size
        added = f"vocabularies.{self.name}.embedding.weight"
        return np.stack([own[t.id] if t.id < n else self.weights(added)[t.id - n] for t in tokens])

    def empty(self, tokens: Sequence[Token]) -> Array:
        """Return (T, D) zeros."""
        return np.zeros((len(tokens), self.dim))

    def _normed(self, depth: int, x_TD: Array, which: str = "input_layernorm") -> Array:
        weight = self.weights(f"towers.{self.name}.layers.{depth - 1}.{which}.weight")
        return norm(x_TD, weight, self.config.norm_eps)

    def _projected(self, depth: int, x_TD: Array, part: str) -> Array:
        name = f"towers.{self.name}.layers.{depth - 1}.self_attn.{part}_proj"
        return self.weights.linear(name, self._normed(depth, x_TD))

    def _turned(self, x: Array, n_heads: int, places: Sequence[int]) -> Array:
        heads = [apply_rotary(head(x, i, n_heads), places, self.config.rope_theta) for i in range(n_heads)]
        return np.concatenate(heads, axis=1)

    def keys(self, depth: int, x_TD: Array, places: Sequence[int]) -> tuple[Array, Array]:
        """Return the rotated keys and the values of layer ``depth``."""
        n_kv = self.config.n_kv_heads or self.config.n_heads
        return self._turned(self._projected(depth, x_TD, "k"), n_kv, places), self._projected(depth, x_TD, "v")

    def layer(self, depth: int, x_TD: Array, places: Sequence[int], others: Sequence[Others]) -> Array:
        """Return the states after layer ``depth``: attention to itself and to others, then SwiGLU."""
        n, n_kv = self.config.n_heads, self.config.n_kv_heads or self.config.n_heads
        queries = self._turned(self._projected(depth, x_TD, "q"), n, places)
        keys, values = self.keys(depth, x_TD, places)
        mask = np.tril(np.ones((len(x_TD), len(x_TD)), dtype=np.bool_))
        for other in others:
            keys, values = np.concatenate([keys, other.keys]), np.concatenate([values, other.values])
            mask = np.concatenate([mask, other.mask], axis=1)
        found = [
            attention(head(queries, i, n), head(keys, i * n_kv // n, n_kv), head(values, i * n_kv // n, n_kv), mask)
            for i in range(n)
        ]
        base = f"towers.{self.name}.layers.{depth - 1}"
        x_TD = x_TD + self.weights.linear(f"{base}.self_attn.o_proj", np.concatenate(found, axis=1))
        inner = self._normed(depth, x_TD, "post_attention_layernorm")
        gate, up = (self.weights.linear(f"{base}.mlp.{part}_proj", inner) for part in ("gate", "up"))
        return x_TD + self.weights.linear(f"{base}.mlp.down_proj", activate("silu", gate) * up)

    def logits(self, x_TD: Array) -> Array:
        """Return the (T, V) logits, those of added vocabulary last."""
        rows = "embed_tokens" if self.config.tied else "lm_head"
        finished = norm(x_TD, self.weights(f"towers.{self.name}.norm.weight"), self.config.norm_eps)
        own = finished @ self.weights(f"towers.{self.name}.{rows}.weight").T
        added = f"vocabularies.{self.name}"
        if not self.weights.has(f"{added}.embedding.weight"):
            return own
        finished = norm(x_TD, self.weights(f"{added}.norm.weight"), EPS)
        return np.concatenate([own, finished @ self.weights(f"{added}.embedding.weight").T], axis=1)
