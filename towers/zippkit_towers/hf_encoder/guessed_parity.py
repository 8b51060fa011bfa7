"""Compares an encoder whose parts were guessed with the model that transformers itself reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from zippkit.batch.batch import Segment
from zippkit.batch.collate import collate
from zippkit.errors import CheckpointError
from zippkit.model.run_tower import tower_states
from zippkit.model.tower import Tower
from zippkit.spec.kinds import Frame
from zippkit.system.progress import without_bars_of_transformers
from zippkit_towers.hf_encoder.config import HfEncoderConfig
from zippkit_towers.hf_encoder.guessed_inputs import batched, example
from zippkit_towers.hf_encoder.guessed_shape import one_line
from zippkit_towers.hf_encoder.parity import TOLERANCE, config_of, gap
from zippkit_towers.hf_encoder.transformers_model import encoder_of, whole_model

_WINDOWS = ("sliding_window", "local_attention", "attention_window", "block_size")
"""Settings by which some layers see only their neighbourhood."""
_LENGTH, _LONGEST = 24, 600
"""Tokens of the longer example of the parity check, where no window asks for more, and at most."""


def read_folder(tower: Tower, path: Path) -> Any:
    """Read the encoder of a Hugging Face folder as transformers does: its own settings, names and weights.

    Raises:
        CheckpointError: weights that are missing or do not fit.
    """
    whole_class = type(_on_meta(config_of(tower)))
    try:
        with without_bars_of_transformers():
            whole, told = whole_class.from_pretrained(
                path, local_files_only=True, use_safetensors=True, dtype=tower.dtype, output_loading_info=True
            )
    except Exception as error:
        # Transformers raises whatever its readers raise.
        raise CheckpointError(
            f"{path}: transformers cannot load it: {type(error).__name__}: {one_line(error)}"
        ) from error
    encoder = encoder_of(whole)
    prefix, own = _prefix_of(whole, encoder), tower.state_dict()
    missing = [n for n in sorted(told["missing_keys"]) if n.startswith(prefix) and n.removeprefix(prefix) in own]
    if missing:
        raise CheckpointError(f"{path}: does not fit its own config.json: missing keys: {', '.join(missing[:5])}")
    return encoder.eval()


def _on_meta(config: HfEncoderConfig) -> Any:
    with torch.device("meta"):
        return whole_model(config, quiet=False)


def own_encoder(tower: Tower) -> Any:
    """The encoder of the tower's config with the tower's weights, its settings untouched."""
    encoder = encoder_of(whole_model(config_of(tower), quiet=False))
    encoder.load_state_dict(tower.state_dict(), strict=False)
    return encoder.to(next(tower.parameters()).device, tower.dtype)


@torch.no_grad()
def check_parity(tower: Tower, own: Any, source: str) -> None:
    """Compare segments of two lengths, in two rows and in training too, with each alone in transformers' own forward.

    Raises:
        CheckpointError: they differ, or cannot be run.
    """
    config, training = config_of(tower), tower.training
    examples = [example(config, size) for size in (7, _long(config))]
    first = next(tower.parameters())
    what = f"{source}: a {config.model_type!r} model"
    frame = Frame(begin=int(examples[0][0]), end=int(examples[0][-1])) if config.feed_kind == "text" else None
    towers = {"it": config.model_copy(update={"frame": frame})}
    inner = [values[1:-1] if config.feed_kind == "text" else values for values in examples]
    rows = [[Segment("it", values) for values in (inner[0], *inner)], [Segment("it", inner[1])]]
    try:
        batch = collate(rows, towers).to(first.device).towers["it"]
        own = own.to(first.device)
        alone = [own(**batched(config, [e], first.device, first.dtype)).last_hidden_state[0] for e in examples]
        expected = (torch.cat([alone[0], *alone]), alone[1])
        for mode in (False, True):
            tower.train(mode)
            found = tower_states(tower, batch)
            largest = max(gap(found[b, : len(states)], states) for b, states in enumerate(expected))
            # Written so that NaN is refused.
            if not largest <= TOLERANCE[tower.dtype]:
                how = "run layer by layer" + (" in training" if mode else "")
                raise CheckpointError(
                    f"{what}, {how}, differs by {largest:.2g} from transformers' own forward; it would run wrong, so "
                    "it is not run"
                )
    except CheckpointError:
        raise
    except Exception as error:
        # Transformers' own code runs here.
        raise CheckpointError(f"{what} cannot be run layer by layer: {one_line(error)}") from error
    finally:
        tower.train(training)


def _long(config: HfEncoderConfig) -> int:
    """Size of the longer example: past the window of a model whose layers see only their neighbourhood."""
    windows = [config.model.get(key) for key in _WINDOWS]
    longest = max([_LENGTH, *(w + 8 for w in windows if type(w) is int)])
    room = config.max_len - 2 if config.max_len is not None else longest
    return max(1, min(longest, room, _LONGEST))


def _prefix_of(whole: nn.Module, encoder: nn.Module) -> str:
    name = next(name for name, module in whole.named_modules() if module is encoder)
    return f"{name}." if name else ""
