"""The work in torchtune: `DeepFusionModel`, whose fusion layers read a decoder's final states."""

from __future__ import annotations

import sys
from copy import deepcopy

import torch
from torch import Tensor, nn
from torchtune.models.llama2 import llama2
from torchtune.modules import MultiHeadAttention, RMSNorm, TanhGate, TransformerCrossAttentionLayer
from torchtune.modules.model_fusion import DeepFusionModel, FusionLayer
from work import DIM, EVERY, FFN, LINK_FFN, N_HEADS, N_LAYERS, SPEECH, TEXT, VOCAB, next_token_loss, serve


def decoder() -> nn.Module:
    """A llama of the work's shape."""
    return llama2(
        vocab_size=VOCAB,
        num_layers=N_LAYERS,
        num_heads=N_HEADS,
        num_kv_heads=N_HEADS,
        embed_dim=DIM,
        max_seq_len=SPEECH,
        intermediate_dim=FFN,
    )


def cross_attention() -> nn.Module:
    """A gated layer that reads the other tower."""
    width = DIM // N_HEADS
    linear = {name: nn.Linear(DIM, DIM, bias=False) for name in ("q_proj", "k_proj", "v_proj", "output_proj")}
    attention = MultiHeadAttention(
        embed_dim=DIM, num_heads=N_HEADS, num_kv_heads=N_HEADS, head_dim=width, **linear, pos_embeddings=None,
        max_seq_len=SPEECH, is_causal=False, attn_dropout=0.0,
    )  # fmt: skip
    return TransformerCrossAttentionLayer(
        attn=attention,
        mlp=nn.Sequential(nn.Linear(DIM, LINK_FFN), nn.GELU(), nn.Linear(LINK_FFN, DIM)),
        ca_norm=RMSNorm(DIM),
        mlp_norm=RMSNorm(DIM),
        ca_scale=TanhGate(),
        mlp_scale=TanhGate(),
    )


class Speech(nn.Module):
    """A decoder's states instead of its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = decoder()
        self.decoder.output = nn.Identity()

    def forward(self, speech: Tensor) -> Tensor:
        return self.decoder(speech)


class Torchtune:
    """A deep fusion of two decoders."""

    def __init__(self) -> None:
        text = decoder()
        text.layers = nn.ModuleList(
            FusionLayer(layer, cross_attention(), fusion_first=False) if i % EVERY == 0 else layer
            for i, layer in enumerate(text.layers, 1)
        )
        self.model = DeepFusionModel(
            text, Speech(), decoder_trainable=False, encoder_trainable=True, fusion_trainable=True
        )
        for name, parameter in self.model.named_parameters():
            if name.endswith(("ca_scale.scale", "mlp_scale.scale")):
                nn.init.ones_(parameter)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.cached: dict[int, DeepFusionModel] = {}
        """Copies with caches, by their number of rows: one with caches trains no more, and takes no other number."""

    def parameters(self) -> list[nn.Parameter]:
        return self.trained

    def loss(self, speech: Tensor, text: Tensor) -> Tensor:
        return next_token_loss(self.model(text, encoder_input={"speech": speech}), text)

    @torch.inference_mode()
    def decode(self, speech: Tensor) -> Tensor:
        n_rows = len(speech)
        if n_rows not in self.cached:
            model = self.cached[n_rows] = deepcopy(self.model)
            model.setup_caches(n_rows, torch.float32, encoder_max_seq_len=SPEECH, decoder_max_seq_len=TEXT)
        model = self.cached[n_rows]
        model.reset_caches()
        tokens = [torch.zeros_like(speech[:, :1])]
        causal = torch.ones(TEXT, TEXT, dtype=torch.bool).tril()
        seen = torch.ones(n_rows, 1, SPEECH, dtype=torch.bool)
        for step in range(TEXT):
            given = {"speech": speech} if step == 0 else None
            logits = model(
                tokens[-1],
                mask=causal[None, step : step + 1].expand(n_rows, 1, TEXT),
                encoder_input=given,
                encoder_mask=seen,
                input_pos=torch.full((n_rows, 1), step),
            )
            tokens.append(logits[:, -1:].argmax(dim=-1))
        return torch.cat(tokens[1:], dim=1)


if __name__ == "__main__":
    serve(Torchtune, int(sys.argv[1]))
