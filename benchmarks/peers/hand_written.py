"""The work as one would write it by hand in plain torch: no library around it, keys and values kept while decoding."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from work import DIM, EVERY, FFN, LINK_FFN, N_HEADS, N_LAYERS, TEXT, VOCAB, next_token_loss, serve

Kept = dict[str, tuple[Tensor, Tensor]]
"""Keys and values (B, H, S, K) of each layer and link."""


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (N_HEADS, -1)).transpose(1, 2)


def rotate(x: Tensor, start: int) -> Tensor:
    half = x.shape[-1] // 2
    steps = torch.arange(half, dtype=torch.float32) / half
    angles = torch.arange(start, start + x.shape[2])[:, None] * 10_000.0**-steps
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Layer(nn.Module):
    """A llama layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.ffn_norm = nn.RMSNorm(DIM), nn.RMSNorm(DIM)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.gate_up, self.down = nn.Linear(DIM, 2 * FFN, bias=False), nn.Linear(FFN, DIM, bias=False)

    def forward(self, x: Tensor, kept: Kept | None = None, name: str = "") -> Tensor:
        q, k, v = map(heads, self.qkv(self.norm(x)).chunk(3, dim=-1))
        start = kept[name][0].shape[2] if kept and name in kept else 0
        q, k = rotate(q, start), rotate(k, start)
        if kept is not None:
            if name in kept:
                k, v = torch.cat((kept[name][0], k), dim=2), torch.cat((kept[name][1], v), dim=2)
            kept[name] = (k, v)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
        x = x + self.out(out.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Link(nn.Module):
    """Gated cross-attention, then a gated feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.source_norm, self.norm, self.ffn_norm = nn.RMSNorm(DIM), nn.RMSNorm(DIM), nn.RMSNorm(DIM)
        self.project = nn.Linear(DIM, DIM)
        self.query, self.out = nn.Linear(DIM, DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.key_value = nn.Linear(DIM, 2 * DIM, bias=False)
        self.ffn = nn.Sequential(nn.Linear(DIM, LINK_FFN), nn.GELU(), nn.Linear(LINK_FFN, DIM))
        self.gates = nn.Parameter(torch.ones(2))

    def keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.key_value(self.project(self.source_norm(source))).chunk(2, dim=-1)
        return heads(k), heads(v)

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = F.scaled_dot_product_attention(heads(self.query(self.norm(x))), k, v)
        gates = self.gates.tanh()
        x = x + gates[0] * self.out(found.transpose(1, 2).flatten(2))
        return x + gates[1] * self.ffn(self.ffn_norm(x))


class HandWritten(nn.Module):
    """Two towers and three links."""

    def __init__(self) -> None:
        super().__init__()
        self.speech_embedding, self.text_embedding = nn.Embedding(VOCAB, DIM), nn.Embedding(VOCAB, DIM)
        self.speech, self.text = (nn.ModuleList(Layer() for _ in range(N_LAYERS)) for _ in range(2))
        self.links = nn.ModuleList(Link() for _ in range(N_LAYERS // EVERY))
        self.norm = nn.RMSNorm(DIM)
        for part in (self.text_embedding, self.text, self.norm):
            part.requires_grad_(False)
        self.trained = [p for p in super().parameters() if p.requires_grad]

    def parameters(self) -> list[nn.Parameter]:  # type: ignore[override]
        return self.trained

    def listen(self, speech: Tensor) -> Kept:
        x, heard = self.speech_embedding(speech), {}
        for i, layer in enumerate(self.speech, 1):
            x = layer(x)
            if i % EVERY == 0:
                heard[f"link{i}"] = self.links[i // EVERY - 1].keys_and_values(x)
        return heard

    def write(self, text: Tensor, heard: Kept, kept: Kept | None = None) -> Tensor:
        x = self.text_embedding(text)
        for i, layer in enumerate(self.text, 1):
            x = layer(x, kept, f"text{i}")
            if i % EVERY == 0:
                x = self.links[i // EVERY - 1](x, *heard[f"link{i}"])
        return F.linear(self.norm(x), self.text_embedding.weight)

    def loss(self, speech: Tensor, text: Tensor) -> Tensor:
        return next_token_loss(self.write(text, self.listen(speech)), text)

    @torch.inference_mode()
    def decode(self, speech: Tensor) -> Tensor:
        heard, kept, tokens = self.listen(speech), {}, [torch.zeros_like(speech[:, :1])]
        for _ in range(TEXT):
            tokens.append(self.write(tokens[-1], heard, kept)[:, -1:].argmax(dim=-1))
        return torch.cat(tokens[1:], dim=1)


if __name__ == "__main__":
    serve(HandWritten, int(sys.argv[1]))
