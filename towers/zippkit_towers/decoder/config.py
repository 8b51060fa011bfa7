"""Settings of the native decoder, and how a llama-family folder tells them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from zippkit.spec.kinds import DROPOUT, MAX_IDS, MAX_WIDTH, AttentionShape, Frame, TowerConfig, read_json

# Keys of a llama config.json that change what the model computes, with the only values that the decoder implements.
_REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "rope_scaling": (None,),
    "partial_rotary_factor": (1.0, None),
}
_FAMILIES: dict[str, dict[str, Any]] = {"llama": {}, "mistral": {"sliding_window": 4096, "num_key_value_heads": 8}}
"""Model types that the decoder computes, and what a key means there that is left out."""


class DecoderConfig(TowerConfig):
    """A llama-like decoder for any discrete tokens."""

    implementation: ClassVar[str] = "zippkit_towers.decoder.tower:Decoder"

    vocab_size: int = Field(gt=0, le=MAX_IDS, description="Number of token ids, begin and end included.")
    n_heads: int = Field(gt=0, le=MAX_WIDTH, description="Query heads.")
    n_kv_heads: int | None = Field(None, gt=0, description="Key and value heads; as many as query heads if left out.")
    head_dim: int | None = Field(None, gt=0, le=MAX_WIDTH, description="Width of a head; dim / n_heads if left out.")
    ffn_dim: int | None = Field(
        None, gt=0, le=MAX_WIDTH, description="Hidden width of the SwiGLU; 8/3 dim, rounded up to 32, if left out."
    )
    norm_eps: float = Field(1e-5, ge=1e-30, description="Epsilon of the RMSNorms.")
    rope_theta: float = Field(10_000.0, gt=0, description="Base of the rotary frequencies.")
    tied: bool = Field(True, description="The head shares the embedding's weight.")
    dropout: float = Field(0.0, ge=0, lt=1, description=f"{DROPOUT} The embedding's states are thinned out too.")
    max_len: int | None = Field(4096, gt=0, description="Longest sequence of this tower's own tokens, in tokens.")

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.head_dim is None and self.dim % self.n_heads:
            raise ValueError(f"n_heads {self.n_heads} does not divide dim {self.dim}; give head_dim or another n_heads")
        if self.head_width % 2:
            raise ValueError(f"head width {self.head_width} is odd; rotary embeddings need an even one")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_kv_heads {self.kv_heads} does not divide n_heads {self.n_heads}")
        return self

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.n_kv_heads or self.n_heads

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.head_dim or self.dim // self.n_heads

    @property
    def ffn_width(self) -> int:
        """Hidden width of the SwiGLU."""
        return self.ffn_dim or -(-8 * self.dim // (3 * 32)) * 32

    @property
    def shared_attention(self) -> AttentionShape:
        """The attention that other towers can join."""
        return AttentionShape(self.kv_heads, self.head_width)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Config of a llama-family folder, or of zippkit's own tower in it.

        Raises:
            ValueError: the folder does not tell, or the decoder does not compute its model.
        """
        if not (folder / "config.json").exists():
            return super().from_folder(folder)
        return cls._from_llama(read_json(folder / "config.json"), str(folder))

    @classmethod
    def _from_llama(cls, raw: dict[str, Any], folder: str) -> Self:
        family = str(raw.get("model_type"))
        if family not in _FAMILIES:
            raise ValueError(f"{folder} holds a {family!r} model; kind `decoder` runs {' and '.join(_FAMILIES)}")
        raw = _FAMILIES[family] | raw
        for key, allowed in _REQUIRED_VALUES.items():
            if raw.get(key, allowed[0]) not in allowed:
                raise ValueError(f"{folder}: {key} is {raw[key]!r}; kind `decoder` computes only {allowed[0]!r}")
        rope = raw.get("rope_parameters") or {}
        plain = isinstance(rope, dict) and set(rope) <= {"rope_theta", "rope_type"}
        if not plain or rope.get("rope_type", "default") != "default":
            raise ValueError(
                f"{folder}: rope_parameters are {rope!r}; kind `decoder` computes only rope_type 'default'"
            )
        frame = None
        if isinstance(raw.get("bos_token_id"), int) and isinstance(raw.get("eos_token_id"), int):
            frame = Frame(begin=raw["bos_token_id"], end=raw["eos_token_id"])
        try:
            return cls(
                vocab_size=raw["vocab_size"],
                dim=raw["hidden_size"],
                n_layers=raw["num_hidden_layers"],
                n_heads=raw["num_attention_heads"],
                n_kv_heads=raw.get("num_key_value_heads"),
                head_dim=raw.get("head_dim"),
                ffn_dim=raw["intermediate_size"],
                norm_eps=raw.get("rms_norm_eps", 1e-6),
                rope_theta=rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0,
                tied=raw.get("tie_word_embeddings", False),
                max_len=raw.get("max_position_embeddings"),
                frame=frame,
            )
        except KeyError as error:
            raise ValueError(f"{folder}: config.json has no {error}") from error

    def as_llama(self) -> dict[str, Any]:
        """The ``config.json`` of the llama that computes the same."""
        frame = self.frame
        told = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.dim,
            "intermediate_size": self.ffn_width,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_width,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "rms_norm_eps": self.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": self.tied,
            # Null, because what is left out is llama's own.
            "bos_token_id": frame and frame.begin,
            "eos_token_id": frame and frame.end,
        }
        return told if self.max_len is None else told | {"max_position_embeddings": self.max_len}

    def parameter_names(self) -> list[str]:
        """Names of all parameters."""
        norms = ["input_layernorm.weight", "post_attention_layernorm.weight"]
        names = [f"layers.{i}.{part}" for i in range(self.n_layers) for part in (*self._layer_shapes(), *norms)]
        return ["embed_tokens.weight", *names, "norm.weight", *([] if self.tied else ["lm_head.weight"])]

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of every linear map."""
        layer = self._layer_shapes().items()
        shapes = {f"layers.{i}.{part}": shape for i in range(self.n_layers) for part, shape in layer}
        return shapes | ({} if self.tied else {"lm_head.weight": (self.vocab_size, self.dim)})

    def _layer_shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of a layer's linear maps."""
        queries, keys = self.n_heads * self.head_width, self.kv_heads * self.head_width
        attention = {"q": (queries, self.dim), "k": (keys, self.dim), "v": (keys, self.dim), "o": (self.dim, queries)}
        inner = (self.ffn_width, self.dim)
        feed_forward = {"gate": inner, "up": inner, "down": inner[::-1]}
        return {f"self_attn.{part}_proj.weight": shape for part, shape in attention.items()} | {
            f"mlp.{part}_proj.weight": shape for part, shape in feed_forward.items()
        }
