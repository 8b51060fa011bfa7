"""The work in transformers: the text half of mllama (Llama 3.2 Vision), which reads a llama's states.

Its cross-attention layers stand among its own layers, with a feed-forward of the layers' kind and width.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, MllamaForCausalLM
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from work import DIM, FFN, N_HEADS, N_LAYERS, TEXT, VOCAB, next_token_loss, serve

CROSS = (2, 5, 8)
"""Among nine layers: after the second, fourth and sixth of its own."""
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": DIM,
    "intermediate_size": FFN,
    "num_attention_heads": N_HEADS,
    "num_key_value_heads": N_HEADS,
    "pad_token_id": 0,
    "bos_token_id": 1024,
    "eos_token_id": 1025,
}


class Mllama:
    """A llama that listens, and mllama's text model that writes."""

    def __init__(self) -> None:
        self.speech = LlamaModel(LlamaConfig(**SHAPE, num_hidden_layers=N_LAYERS))
        config = MllamaTextConfig(
            **SHAPE,
            num_hidden_layers=N_LAYERS + len(CROSS),
            cross_attention_layers=list(CROSS),
            tie_word_embeddings=True,
        )
        self.text = MllamaForCausalLM(config)
        self.text.requires_grad_(False)
        layers = self.text.model.layers
        self.trained = [*self.speech.parameters()]
        for i in CROSS:
            layers[i].requires_grad_(True)
            with torch.no_grad():
                layers[i].cross_attn_attn_gate.fill_(1)
                layers[i].cross_attn_mlp_gate.fill_(1)
            self.trained += layers[i].parameters()

    def parameters(self) -> list[nn.Parameter]:
        return self.trained

    def loss(self, speech: Tensor, text: Tensor) -> Tensor:
        heard = self.speech(speech, use_cache=False).last_hidden_state
        logits = self.text(input_ids=text, cross_attention_states=heard, use_cache=False).logits
        return next_token_loss(logits, text)

    @torch.inference_mode()
    def decode(self, speech: Tensor) -> Tensor:
        heard = self.speech(speech, use_cache=False).last_hidden_state
        tokens, kept = [torch.zeros_like(speech[:, :1])], None
        for step in range(TEXT):
            given = {"cross_attention_states": heard} if step == 0 else {}
            position = torch.full((1, 1), step)
            out = self.text(input_ids=tokens[-1], past_key_values=kept, use_cache=True, position_ids=position, **given)
            kept = out.past_key_values
            tokens.append(out.logits[:, -1:].argmax(dim=-1))
        return torch.cat(tokens[1:], dim=1)


if __name__ == "__main__":
    serve(Mllama, int(sys.argv[1]))
