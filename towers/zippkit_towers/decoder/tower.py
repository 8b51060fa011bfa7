"""The native decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU (llama, arXiv 2302.13971).

Parameters carry the names of a llama checkpoint without its leading ``model.``, so such a folder loads as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from zippkit.batch.batch import TowerBatch
from zippkit.errors import CheckpointError
from zippkit.model.fused import swiglu
from zippkit.model.kv_cache import KeyValues
from zippkit.model.layers import Dropout, angles_of, rotate, split_heads
from zippkit.model.linear import linear
from zippkit.model.packed import matrices_of
from zippkit.model.tower import Exported, Projected, SharedAttention, Tower, TowerForm
from zippkit.model.visibility import Mask, attend_seen, cache_visibility, own_visibility
from zippkit.model.weights import load_into, read_tensors
from zippkit_towers.decoder.config import DecoderConfig
from zippkit_towers.decoder.decoding import DecoderForm, LayerWeights

Cache = KeyValues


@dataclass(frozen=True)
class Context:
    """Shared inputs of all layers in one forward pass."""

    angles: tuple[Tensor, Tensor]
    mask: Mask
    """Of the tower's own tokens."""
    cache: Cache | None
    slots: Tensor
    """(B, T) of the cache that the new tokens take."""


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = config.n_heads, config.kv_heads
        width = config.head_width
        self.q_proj = nn.Linear(config.dim, config.n_heads * width, bias=False)
        self.k_proj = nn.Linear(config.dim, config.kv_heads * width, bias=False)
        self.v_proj = nn.Linear(config.dim, config.kv_heads * width, bias=False)
        self.o_proj = nn.Linear(config.n_heads * width, config.dim, bias=False)

    def project(self, x_BTD: Tensor, context: Context) -> Projected:
        """Queries, keys and values of the new tokens."""
        return Projected(
            rotate(split_heads(self.q_proj(x_BTD), self.n_heads), context.angles),
            rotate(split_heads(self.k_proj(x_BTD), self.n_kv_heads), context.angles),
            split_heads(self.v_proj(x_BTD), self.n_kv_heads),
        )


def remember(index: int, projected: Projected, context: Context) -> tuple[Tensor, Tensor, Mask]:
    """Keys and values of every token so far, through the cache if there is one, and their mask."""
    if context.cache is None or context.mask is None:
        return projected.keys, projected.values, context.mask
    new = projected.keys, projected.values
    return *context.cache.extend(index, *new, context.slots, context.mask.shape[-1]), context.mask


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))`` (arXiv 2002.05202)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, width, bias=False)
        self.up_proj = nn.Linear(dim, width, bias=False)
        self.down_proj = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Feed-forward output (B, T, D) of (B, T, D) states."""
        out: Tensor = self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
        return out


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each with its residual."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.mlp = SwiGLU(config.dim, config.ffn_width)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor, index: int, context: Context) -> Tensor:
        """States (B, T, D) after this layer, which is layer ``index``."""
        projected = self.project(hidden, context)
        keys, values, mask = remember(index, projected, context)
        return self.close(hidden, attend_seen(projected.queries, keys, values, mask))

    def project(self, hidden: Tensor, context: Context) -> Projected:
        """Queries, keys and values of the new tokens, after the first norm."""
        projected: Projected = self.self_attn.project(self.input_layernorm(hidden), context)
        return projected

    def close(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """The layer's output (B, T, D) from its input and from the attention's output."""
        hidden = hidden + self.dropout(self.self_attn.o_proj(attended))
        fed: Tensor = self.dropout(self.mlp(self.post_attention_layernorm(hidden)))
        return hidden + fed


def _weights_of(layer: nn.Module) -> LayerWeights | None:
    """A layer's weights; None where a part of it computes something else."""
    if type(layer) is not Layer or type(layer.self_attn) is not Attention or type(layer.mlp) is not SwiGLU:
        return None
    attention, mlp = layer.self_attn, layer.mlp
    maps = matrices_of([attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj])
    inner = matrices_of([mlp.gate_proj, mlp.up_proj, mlp.down_proj])
    if maps is None or inner is None:
        return None
    norms, heads = (layer.input_layernorm, layer.post_attention_layernorm), (attention.n_heads, attention.n_kv_heads)
    return LayerWeights(norms, maps, inner, heads)


class Decoder(Tower[Cache, Context], SharedAttention[Context]):
    """A causal decoder for any discrete tokens: text, speech units, image levels."""

    Config = DecoderConfig
    takes_description = True
    takes_branches = True
    config: DecoderConfig

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)
        if not config.tied:
            self.lm_head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # Residual outputs start smaller with depth, so that the sum over layers keeps its size (GPT-2).
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * self.config.n_layers) ** 0.5 if residual else 0.02)

    def start(self, inputs: TowerBatch, mask: Tensor | None, cache: Cache | None = None) -> tuple[Tensor, Context]:
        """Embed the new tokens; return the states (B, T, D) at depth 0 and what the layers need besides them."""
        hidden: Tensor = self.dropout(self.embed_tokens(inputs.tokens))
        config = self.config
        angles = angles_of(inputs, inputs.position_ids, config.head_width, config.rope_theta, hidden.dtype)
        seen: Mask = mask
        if mask is None:
            seen = own_visibility(inputs, config.causal) if cache is None else cache_visibility(inputs)
        return hidden, Context(angles, seen, cache, inputs.slots)

    def layer_modules(self) -> Sequence[nn.Module]:
        """The layers."""
        return list(self.layers)

    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        """Run layer ``index`` on (B, T, D) states."""
        out: Tensor = self.layers[index](hidden, index, context)
        return out

    def project(self, index: int, hidden: Tensor, context: Context) -> Projected:
        """Queries, keys and values of the new tokens in layer ``index``."""
        return cast("Layer", self.layers[index]).project(hidden, context)

    def remember(self, index: int, projected: Projected, context: Context) -> tuple[Tensor, Tensor, Mask]:
        """Keys and values of every token so far, through the KV cache if there is one, and their mask."""
        return remember(index, projected, context)

    def close(self, index: int, hidden: Tensor, attended: Tensor, context: Context) -> Tensor:
        """Layer ``index``'s output from its input and from the attention's output."""
        del context
        return cast("Layer", self.layers[index]).close(hidden, attended)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        logits: Tensor = linear(self.norm(hidden), self._head_weight)
        return logits

    @property
    def _head_weight(self) -> Tensor:
        return self.embed_tokens.weight if self.config.tied else self.lm_head.weight

    def decoding_form(self, blocked: bool) -> TowerForm | None:
        """The layers and the head for one token of each row; None where a part is not the decoder's own."""
        own, layers = type(self), [_weights_of(layer) for layer in self.layers]
        known = [layer for layer in layers if layer is not None]
        computes = own.layer is Decoder.layer and own.head is Decoder.head and own.remember is Decoder.remember
        if not computes or len(known) < len(layers) or len({p.dtype for p in self.parameters()}) > 1:
            return None
        return DecoderForm(known, self.norm, self._head_weight, self.remember, blocked)

    def new_cache(self, batch_size: int, max_len: int) -> Cache:
        """An empty KV cache of ``max_len`` slots in each row."""
        shape = (batch_size, self.config.kv_heads, max_len, self.config.head_width)
        like = self.norm.weight
        keys, values = ([like.new_zeros(shape) for _ in self.layers] for _ in range(2))
        return Cache(keys, values)

    def reorder_cache(self, cache: Cache, rows: Tensor) -> Cache:
        """A cache of its own with these (N,) rows."""
        return cache.picked(rows)

    @classmethod
    def hugging_face(cls, config: DecoderConfig) -> dict[str, Any] | None:
        """The ``config.json`` of the llama that computes the same; None for subclasses."""
        # What is built on a decoder computes something else.
        return config.as_llama() if cls is Decoder else None

    def exported(self) -> Exported | None:
        """The decoder part of an exported model; None for subclasses."""
        return Exported("decoder", self.exported_settings()) if type(self) is Decoder else None

    def exported_settings(self) -> dict[str, Any]:
        """The config, with what follows from it written down."""
        config = self.config
        told = {"n_kv_heads": config.kv_heads, "head_dim": config.head_width, "ffn_dim": config.ffn_width}
        same = ("vocab_size", "dim", "n_layers", "n_heads", "norm_eps", "rope_theta", "tied")
        return {**{key: getattr(config, key) for key in same}, **told}

    def load_weights(self, path: Path) -> None:
        """Copy the weights of a llama-family checkpoint.

        Raises:
            CheckpointError: weights that do not fit, or a head of its own where the config ties it to the embedding.
        """
        load_into(self, self._own(read_tensors(path), path), str(path))

    def mapped_weights(self, path: Path) -> Mapping[str, Tensor]:
        """The tensors of a llama-family checkpoint, under this tower's names."""
        return self._own(read_tensors(path, check=False), path)

    def _own(self, found: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        tensors = {name.removeprefix("model."): tensor for name, tensor in found.items()}
        if self.config.tied and "lm_head.weight" in tensors:
            head = tensors.pop("lm_head.weight")
            if "embed_tokens.weight" in tensors and not torch.equal(head, tensors["embed_tokens.weight"]):
                raise CheckpointError(
                    f"{path}: lm_head differs from the embedding; expected `tied: false` in the config"
                )
        return tensors
