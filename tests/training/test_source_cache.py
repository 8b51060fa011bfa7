"""Kept states of frozen sources: equal to computed ones, never out of date, and sound through kills and damage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zippkit
from helpers.compositions import link, make, randomise, tower
from helpers.tiny_encoders import MODELS
from zippkit.batch.batch import Batch, Segment
from zippkit.composition import Composition
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.training.device import CPU
from zippkit.training.source_cache import SourceCache
from zippkit.training.source_units import units
from zippkit.training.state_store import StateStore

pytestmark = pytest.mark.slow

TEXT = tower(2, 8, 8, freeze=True)
DECODER = tower(3, 8, 8, freeze=True)
CROSS = link("speech", "text", every=1)


def encoder(name: str, **more: Any) -> dict[str, Any]:
    rate = {} if name in ("vit", "clip") else {"sample_rate": 16000 if name == "whisper" else 800}
    return {"kind": "hf_encoder", "config": {"model": MODELS[name], **rate}, "freeze": True, **more}


SOURCES = {
    "decoder": DECODER,
    "whisper": encoder("whisper"),
    "wav2vec2": encoder("wav2vec2"),
    "wav2vec2, stable": encoder("wav2vec2, stable"),
    "vit": encoder("vit"),
    "bert": {
        "kind": "hf_encoder",
        "freeze": True,
        "config": {
            "model": {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
            | {"intermediate_size": 32, "vocab_size": 8, "max_position_embeddings": 32},
            "frame": {"begin": 6, "end": 7},
        },
    },
}


def composed(source: dict[str, Any], links: list[dict[str, Any]] | None = None, **text: Any) -> Composition:
    zipped = make({"text": TEXT | text, "speech": source}, links or [CROSS])
    zipped.model.train()
    return zipped


def said(zipped: Composition, size: int, seed: int) -> Segment:
    config = zipped.graph.towers["speech"]
    if config.continuous:
        return Segment("speech", config.example_inputs(size, seed))
    return Segment("speech", np.random.default_rng(seed).integers(0, 6, size), loss=False)


def batched(zipped: Composition, sizes: list[int], multiple: int = 1) -> Batch:
    rows = [[said(zipped, n, i), Segment("text", [1, 2, 3 + i % 3])] for i, n in enumerate(sizes)]
    return zipped.collate(rows, multiple)


def cached(zipped: Composition, folder: Path, dtype: torch.dtype = torch.float32) -> SourceCache:
    return SourceCache(zipped, StateStore(folder, dtype), CPU(), "fp32")


def trained(zipped: Composition, batch: Batch) -> dict[str, torch.Tensor]:
    """The loss and all gradients of a step."""
    zipped.model.train().zero_grad(set_to_none=True)
    losses = zipped.loss(zipped.model(batch), batch)
    losses["total"].backward()
    gradients = {n: p.grad.clone() for n, p in zipped.model.named_parameters() if p.grad is not None}
    return {"loss": losses["total"].detach(), **gradients}


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("name", SOURCES)
def test_a_step_is_the_same_with_kept_states(name: str, tmp_path: Path) -> None:
    zipped = composed(SOURCES[name])
    cache, batch = cached(zipped, tmp_path), batched(zipped, [5, 3, 9, 4], 4)
    plain = trained(zipped, batch)
    assert cache.read(batch).towers["speech"].states is None, "nothing is there yet"
    first = trained(zipped, cache.complete(batch))
    assert len(entries(tmp_path)) == cache.n_computed == 4
    again = trained(zipped, cache.read(batch))
    assert cache.n_computed == 4
    assert (
        plain.keys()
        == first.keys()
        == again.keys()
        == {"loss"} | {n for n, p in zipped.model.named_parameters() if p.requires_grad}
    ), "every trainable parameter is reached (C7)"
    for key, value in plain.items():
        assert torch.equal(first[key], again[key]), f"{key}: read is what was computed"
        assert torch.allclose(first[key], value, rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize("name", SOURCES)
def test_where_the_shapes_are_the_same_so_is_every_bit(name: str, tmp_path: Path) -> None:
    zipped = composed(SOURCES[name])
    batch = batched(zipped, [7])
    plain, kept = trained(zipped, batch), trained(zipped, cached(zipped, tmp_path).complete(batch))
    assert all(torch.equal(kept[key], value) for key, value in plain.items())


def test_states_are_those_of_the_example_whatever_stands_beside_it(tmp_path: Path) -> None:
    zipped = composed(SOURCES["wav2vec2"])
    alone, beside = cached(zipped, tmp_path / "a"), cached(zipped, tmp_path / "b")
    for batch in (batched(zipped, [5, 9], 16), batched(zipped, [5, 9, 20, 3])):
        one = alone.complete(replace(batch, towers=batch.towers)).towers["speech"].states
        assert one is not None
    beside.complete(batched(zipped, [5, 9, 20, 3], 8))
    names = [{file.name: file.read_bytes() for file in entries(folder)} for folder in (tmp_path / "a", tmp_path / "b")]
    assert names[0] == names[1] and len(names[0]) == 4, "the same files, to the byte"


def test_no_layer_of_a_kept_tower_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipped = composed(SOURCES["wav2vec2"])
    batch = cached(zipped, tmp_path).complete(batched(zipped, [5, 3]))
    plan = zipped.plan.prune(zipped.model.wanted(batch))
    assert {op.kind for op in plan.ops if op.tower == "speech"} == {"write"}
    monkeypatch.setattr(type(zipped.model.tower("speech")), "start", None)
    zipped.model(batch)


@given(st.lists(st.lists(st.tuples(st.sampled_from(["speech", "text"]), st.integers(1, 5)), min_size=1, max_size=4)))
@settings(max_examples=40, deadline=None)
def test_units_cover_every_token_once(shapes: list[list[tuple[str, int]]]) -> None:
    rows = [[Segment(name, np.arange(n) % 5) for name, n in row] for row in shapes]
    if not rows:
        return
    for source, causal in ((DECODER, True), (SOURCES["bert"], False)):
        zipped = _composed_once(causal, source)
        batch = zipped.collate(rows, 4)
        for name, inputs in batch.towers.items():
            if name == "speech":
                covered = torch.zeros_like(inputs.order)
                for unit in units(inputs, causal, True):
                    covered[unit.row, unit.place] += 1
                    assert torch.equal(unit.inputs.tokens[0], inputs.tokens[unit.row, unit.place])
                    if not causal:
                        assert len(set(inputs.segment[unit.row, unit.place].tolist())) == 1
                assert torch.equal(covered, (inputs.order >= 0).long())


_ONCE: dict[bool, Composition] = {}


def _composed_once(causal: bool, source: dict[str, Any]) -> Composition:
    return _ONCE.setdefault(causal, composed(source))


def test_several_segments_of_a_row(tmp_path: Path) -> None:
    """An encoder's segments are entries of their own; a decoder's later one depends on the one before it."""
    for name, n_entries in (("wav2vec2", 2), ("decoder", 1)):
        zipped = composed(SOURCES[name])
        rows = [[said(zipped, 5, 0), Segment("text", [1, 2]), said(zipped, 4, 1), Segment("text", [3])]]
        batch, cache = zipped.collate(rows), cached(zipped, tmp_path / name)
        plain, kept = trained(zipped, batch), trained(zipped, cache.complete(batch))
        assert len(entries(tmp_path / name)) == n_entries
        assert all(torch.allclose(kept[key], value, rtol=1e-4, atol=1e-5) for key, value in plain.items())


def test_both_directions_of_a_pair_of_towers_share_nothing_wrong(tmp_path: Path) -> None:
    """Where a link rewrites the source, but not in this batch, its reads are passed by and its states kept."""
    zipped = composed(DECODER, [CROSS, link("text", "speech", every=1)])
    cache, batch = cached(zipped, tmp_path), batched(zipped, [5, 3])
    assert cache.kept(batch) == {"speech": (2, 3)}
    plain, kept = trained(zipped, batch), trained(zipped, cache.complete(batch))
    assert all(torch.allclose(kept[key], value, rtol=1e-4, atol=1e-5) for key, value in plain.items())
    rewritten = zipped.collate([[Segment("text", [1]), Segment("speech", [2], loss=False), Segment("text", [3])]])
    assert "speech" not in cache.kept(rewritten)
    assert cache.computed(rewritten)["speech"] == "link 'text_to_speech' rewrites its states"


@pytest.mark.parametrize(
    ("source", "links", "reason"),
    [
        (DECODER | {"freeze": False}, [CROSS], "trained"),
        (DECODER | {"input_projection": {"depth": 2}}, [CROSS], "its input projection is trained"),
        (DECODER | {"lora": {"rank": 2, "pattern": "*q_proj.weight"}}, [CROSS], "its adapters (LoRA) are trained"),
        (DECODER, [link("text", "speech", every=3), CROSS], ""),
        (
            DECODER | {"config": DECODER["config"] | {"n_layers": 2}},
            [
                {"kind": "joint_attention", "from": "speech", "into": "text", "every": 1},
                {"kind": "joint_attention", "from": "text", "into": "speech", "every": 1},
            ],
            "its attention is shared with another tower",
        ),
    ],
)
def test_what_cannot_be_kept_says_why(
    source: dict[str, Any], links: list[dict[str, Any]], reason: str, tmp_path: Path
) -> None:
    zipped = composed(source, links)
    batch, cache = batched(zipped, [4, 2]), cached(zipped, tmp_path)
    assert cache.computed(batch).get("speech", "") == reason
    assert cache.computed(batch)["text"] in ("a loss is asked of it", "its attention is shared with another tower")
    assert ("speech" in cache.kept(batch)) == (reason == "")
    assert (cache.complete(batch).towers["speech"].states is None) == (reason != "")


def test_a_frozen_input_projection_is_part_of_what_is_kept(tmp_path: Path) -> None:
    zipped = composed(DECODER | {"input_projection": {"depth": 2}})
    projection = zipped.model.groups["input_projections"]
    projection.requires_grad_(False)
    rows = [[said(zipped, 4, 0), Segment("text", [1, 2])]]
    cache = cached(zipped, tmp_path)
    batch = zipped.collate(rows)
    plain, kept = trained(zipped, batch), trained(zipped, cache.complete(batch))
    assert all(torch.allclose(kept[key], value, rtol=1e-4, atol=1e-5) for key, value in plain.items())
    randomise(projection, 1)
    other = cached(zipped, tmp_path)
    other.complete(batch)
    assert other.n_computed == 1, "another projection, another key"


def reweighted(zipped: Composition) -> Composition:
    with torch.no_grad():
        next(zipped.model.tower("speech").parameters()).view(-1)[0] += 1e-3
    return zipped


CHANGES: dict[str, Callable[[], Composition]] = {
    "a weight": lambda: reweighted(composed(DECODER)),
    "a setting": lambda: composed(DECODER | {"config": DECODER["config"] | {"rope_theta": 5000.0}}),
    "the depths": lambda: composed(DECODER, [link("speech", "text", every=1, source="final")]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_has_another_key(change: str, tmp_path: Path) -> None:
    zipped = composed(DECODER)
    batch = batched(zipped, [4])
    cached(zipped, tmp_path).complete(batch)
    same = cached(composed(DECODER), tmp_path)
    same.complete(batch)
    assert same.n_computed == 0, "the same model in another process finds them"
    changed = cached(CHANGES[change](), tmp_path)
    changed.complete(batch)
    assert changed.n_computed == 1


def test_other_inputs_precision_tokenizer_or_code_have_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped = composed(DECODER)
    batch = batched(zipped, [4])

    def new(**how: Any) -> int:
        cache = replace(cached(zipped, tmp_path), **how)
        cache.complete(batch)
        return cache.n_computed

    assert (new(), new()) == (1, 0)
    assert (new(precision="bf16"), new(precision="bf16")) == (1, 0)
    assert (new(tokenizers={"speech": "0123"}), new(tokenizers={"speech": "4567"})) == (1, 1)
    assert new(tokenizers={"text": "0123"}) == 0, "another tower's tokenizer"
    assert new(store=StateStore(tmp_path, torch.bfloat16)) == 1
    monkeypatch.setattr("zippkit.training.state_keys._source", lambda cls: "edited")
    assert new() == 1
    monkeypatch.undo()
    monkeypatch.setattr("zippkit.training.state_keys.FORMAT", 0)
    assert new() == 1


@pytest.mark.parametrize("name", ["decoder", "wav2vec2", "vit"])
def test_another_example_has_another_key(name: str) -> None:
    zipped = composed(SOURCES[name])
    config = zipped.model.tower("speech").config

    def key(segment: Segment) -> str:
        (unit,) = units(zipped.collate([[segment, Segment("text", [1])]]).towers["speech"], config.causal, True)
        return unit.key()

    one = said(zipped, 6, 0)
    other = np.array(one.tokens)
    other.flat[-1] += 0.5 if config.continuous else 1
    assert key(one) == key(Segment("speech", np.array(one.tokens))) != key(Segment("speech", other))
    assert key(one) != key(said(zipped, 6, 1))


def test_a_shorter_sound_is_not_the_same_sound_with_silence_behind_it() -> None:
    zipped = composed(SOURCES["wav2vec2"])
    wave = said(zipped, 6, 0).tokens
    rows = [[Segment("speech", each), Segment("text", [1])] for each in (wave, np.append(wave, np.float32(0)))]
    inputs = zipped.collate(rows).towers["speech"]
    assert len({unit.key() for unit in units(inputs, False, True)}) == 2


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "other"])
def test_a_damaged_entry_is_told_of_and_computed_anew(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zipped = composed(DECODER)
    batch = batched(zipped, [4, 7])
    sound = cached(zipped, tmp_path).complete(batch).towers["speech"].states
    file, other = entries(tmp_path)
    content = file.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    file.write_bytes({"cut": content[:-9], "bit": flipped, "empty": b"", "other": other.read_bytes()}[damage])
    cache = cached(zipped, tmp_path)
    assert cache.read(batch).towers["speech"].states is None
    again = cache.complete(batch).towers["speech"].states
    assert cache.n_computed == 1 and capsys.readouterr().err.count(f"{file}: damaged") == 1
    assert sound is not None and again is not None and all(torch.equal(sound[d], again[d]) for d in sound)
    assert file.read_bytes() == content


def test_half_precision_says_how_far_it_is_off(tmp_path: Path) -> None:
    zipped = composed(DECODER)
    batch = batched(zipped, [4, 7])
    exact = cached(zipped, tmp_path).complete(batch).towers["speech"].states
    cache = cached(zipped, tmp_path, torch.bfloat16)
    half, again = (cache.complete(batch).towers["speech"].states for _ in range(2))
    assert exact is not None and half is not None and again is not None
    assert all(torch.equal(half[d], again[d]) for d in half), "the first time too, states are what is read later"
    off = max(float((half[d] - exact[d]).abs().max() / exact[d].abs().max()) for d in half)
    assert 0 < off <= cache.store.largest_error < 2**-7


def test_a_full_disk_stops_keeping_and_not_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    zipped = composed(DECODER)
    batch = batched(zipped, [4, 7])
    cache = cached(zipped, tmp_path)
    cache.entries(batch)

    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("zippkit.training.state_store.save_file", full)
    assert cache.complete(batch).towers["speech"].states is not None
    told = capsys.readouterr().err
    assert told.count("No space left") == 1 and "states are computed from here on" in told
    assert entries(tmp_path) == []


WRITER = """
import sys
import torch
from pathlib import Path
from zippkit.training.state_store import StateStore
store = StateStore(Path(sys.argv[1]), torch.float32)
what = store.open({"a": 1})
print("ready", flush=True)
n = 0
while True:
    store.write(what, f"{n % 7:064x}", {0: torch.full((200, 64), float(n % 7))})
    n += 1
"""


def test_writers_that_are_killed_leave_whole_entries_or_none(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    for _ in range(3):
        both = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(2)
        ]
        for process in both:
            assert process.stdout is not None and process.stdout.readline()
        time.sleep(numbers.uniform(0, 0.1))
        for process in both:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    store = StateStore(tmp_path, torch.float32)
    what = store.open({"a": 1})
    found = [store.read(what, f"{n:064x}") for n in range(7)]
    assert all(states is None or bool((states[0] == n).all()) for n, states in enumerate(found))
    assert sum(store.has(what, f"{n:064x}") for n in range(7)) == sum(states is not None for states in found) > 0


@torch._dynamo.config.patch(error_on_recompile=True)
def test_one_compilation_serves_batches_of_kept_states(tmp_path: Path) -> None:
    zipped = composed(SOURCES["wav2vec2"])
    cache = cached(zipped, tmp_path)
    compiled = torch.compile(zipped.model, fullgraph=True, dynamic=False, backend="eager")
    for sizes in ([5, 3], [4, 9]):
        given = cache.complete(batched(zipped, sizes, 16))
        assert torch.allclose(compiled(given)["text"], zipped.model(given)["text"], rtol=1e-4, atol=1e-5)


def test_a_contrastive_loss_takes_kept_states(tmp_path: Path) -> None:
    contrast = {"from": "speech", "into": "text", "target_depth": 1}
    spec = {"name": "tiny", "towers": {"text": TEXT, "speech": DECODER}, "links": [CROSS], "contrastive": [contrast]}
    zipped = zippkit.compile(CompositionSpec.model_validate(spec))
    randomise(zipped.model)
    zipped.model.train()
    cache, batch = cached(zipped, tmp_path), batched(zipped, [5, 3, 9], 4)
    given = cache.complete(batch)
    assert set(given.towers["speech"].states or ()) == {2, 3}
    plain, kept = trained(zipped, batch), trained(zipped, given)
    assert any(name.startswith("contrastive") for name in plain) and plain.keys() == kept.keys()
    assert all(torch.allclose(kept[key], value, rtol=1e-4, atol=1e-5) for key, value in plain.items())


@pytest.mark.parametrize("name", ["decoder", "wav2vec2", "bert"])
def test_examples_that_share_a_row_are_entries_of_their_own(name: str, tmp_path: Path) -> None:
    zipped = composed(SOURCES[name])
    rows = [[said(zipped, n, i), Segment("text", [1, 2, 3 + i % 3])] for i, n in enumerate([5, 3, 9, 4, 6])]
    apart, packed = zipped.collate(rows), zipped.collate(rows, 4, pack=40)
    assert packed.towers["speech"].packed and packed.size < len(rows)
    cache = cached(zipped, tmp_path)
    plain, kept = trained(zipped, packed), trained(zipped, cache.complete(packed))
    assert all(torch.allclose(kept[key], value, rtol=1e-4, atol=1e-5) for key, value in plain.items())
    assert cache.n_computed == len(rows)
    cache.complete(apart)
    assert cache.n_computed == len(rows), "the same entries as of rows of their own"
