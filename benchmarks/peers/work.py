"""The work that every peer does, and the loop in which a peer does it when it is asked; torch only.

Two llama-like decoders of width 256, 6 layers, 8 heads, feed-forward 704 and 1,026 ids. The text tower is frozen and
reads the speech tower after its layers 2, 4 and 6, through gated cross-attention with a feed-forward of width 1,024;
speech tower and links are trained. A training step is forward, loss on the text, backward, clipping at 1 and Adam, of
16 rows of 256 speech and 64 text tokens. Decoding answers 256 speech tokens with 64 text tokens, greedily, the prompt's
pass included.

A peer is asked by lines of JSON on its standard input, and answers with one each, so that several take turns.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIM, N_LAYERS, N_HEADS, FFN, LINK_FFN, VOCAB = 256, 6, 8, 704, 1024, 1026
EVERY = 2
"""Text layers between two links."""
ROWS, SPEECH, TEXT = 16, 256, 64
DECODE_BYTES = 4 * (
    N_LAYERS * (4 * DIM**2 + 3 * DIM * FFN) + VOCAB * DIM + N_LAYERS // EVERY * 2 * DIM * (DIM + LINK_FFN)
)
"""Weights that a decoded token must read: the text tower's, its head's, and of each link the queries', the output's and
the feed-forward's."""


class Peer(Protocol):
    """One toolkit's model of this work."""

    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""

    def loss(self, speech: Tensor, text: Tensor) -> Tensor:
        """Mean loss of predicting text (B, 64) after speech (B, 256)."""

    def decode(self, speech: Tensor) -> Tensor:
        """The 64 likeliest text tokens, one after the other, after speech (B, 256)."""


def next_token_loss(logits: Tensor, text: Tensor) -> Tensor:
    """Mean cross-entropy of each text token (B, T) after those before it; logits are (B, T, V)."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())


def train_step(peer: Peer, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], bf16: bool) -> None:
    """One optimizer step."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss = peer.loss(*batch)
    loss.backward()
    nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def gemm() -> None:
    """A large fp32 matrix product: 2 * 1024**3 operations."""
    a, b = torch.ones(1024, 1024), torch.ones(1024, 1024)
    for _ in range(20):
        torch.mm(a, b)


def gemv() -> None:
    """A matrix of 32 MiB with a vector, as one row's decoding reads weights."""
    matrix, vector = torch.ones(4096, 2048), torch.ones(2048)
    for _ in range(20):
        torch.mv(matrix, vector)


def serve(make: Callable[[], Peer], n_threads: int) -> None:
    """Answer requests until the input ends."""
    torch.set_num_threads(n_threads)
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peer = make()
    optimizer = torch.optim.Adam(peer.parameters(), lr=1e-3, fused=True)
    batch = torch.randint(0, 1024, (ROWS, SPEECH)), torch.randint(0, 1024, (ROWS, TEXT))
    work: dict[str, Callable[[], Any]] = {
        "gemm": gemm,
        "gemv": gemv,
        "train": lambda: train_step(peer, optimizer, batch, bf16=False),
        "train_bf16": lambda: train_step(peer, optimizer, batch, bf16=True),
        "decode_b1": lambda: peer.decode(batch[0][:1]),
        "decode_b8": lambda: peer.decode(batch[0][:8]),
    }
    for line in sys.stdin:
        asked = json.loads(line)
        if asked == "memory":
            answer: float = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        elif asked == "flops":
            answer = flops(work["train"], getattr(peer, "flops", {}))
        elif asked == "parameters":
            answer = sum(p.numel() for p in peer.parameters())
        elif asked == "decode_bytes":
            answer = DECODE_BYTES
        else:
            began = time.perf_counter()
            work[asked]()
            answer = time.perf_counter() - began
        print(json.dumps(answer), flush=True)


def flops(step: Callable[[], Any], rules: dict[Any, Any]) -> float:
    """Operations of one training step, as torch counts them, with a peer's rules for what torch does not know."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping=rules) as counter:
        step()
    return float(counter.get_total_flops())
