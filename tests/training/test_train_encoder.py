"""Training on waveforms and images: a tower that is fed floats, from the dataset to the report and the answer."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import zippkit.evaluation.conversation
import zippkit.report.plots
from helpers.compositions import make, tower
from helpers.greedy import greedy, sharp
from helpers.interrupts import assert_same_run, interrupt, on_step
from helpers.tiny_encoders import MODELS
from helpers.tiny_runs import WORDS
from zippkit import cli
from zippkit.batch.batch import Segment
from zippkit.batch.mask_view import Masks
from zippkit.composition import compile, load
from zippkit.data.audio import Wave, read_audio, write_audio
from zippkit.data.dataset import Dataset, Example
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.pixel_tokenizer import PixelTokenizer
from zippkit.data.text import train_words
from zippkit.errors import DataError, SpecError
from zippkit.evaluation.conversation import Given, answer
from zippkit.evaluation.evaluate import evaluate
from zippkit.generation.api import generate_batch
from zippkit.loading import load_recipe
from zippkit.report.run_page import write_report
from zippkit.spec.recipe import Recipe
from zippkit.training.run_folder import RunFolder
from zippkit.training.trainer import InterruptedRunError, train

pytestmark = pytest.mark.slow

RATE = 800
TEXT = {
    "kind": "decoder",
    "config": {"vocab_size": 7, "dim": 16, "n_layers": 1, "n_heads": 2, "ffn_dim": 32},
    "frame": {"begin": 1, "end": 2},
}
PREFIX = {"kind": "prefix", "from": "speech", "into": "text", "config": {"stack": 3}}


def said(words: list[int], seed: int) -> Wave:
    """A tone for each word."""
    numbers = np.random.default_rng(seed)
    times = np.arange(60) / RATE
    tones = [np.sin(2 * np.pi * (60 + 80 * word + numbers.uniform(-5, 5)) * times) for word in words]
    return (0.5 * np.concatenate(tones)).astype(np.float32)


def examples(n: int, seed: int) -> list[Example]:
    numbers = np.random.default_rng(seed)
    drawn = [numbers.integers(0, len(WORDS), numbers.integers(1, 3)).tolist() for _ in range(n)]
    return [
        Example(
            f"{seed}-{i:03d}",
            "nobody",
            0.0,
            {
                "text": " ".join(WORDS[word] for word in words),
                "speech": said(words, seed * 1000 + i),
                "image": np.eye(4, dtype=np.int64)[words[0]] * 4,
            },
        )
        for i, words in enumerate(drawn)
    ]


def tiny_recipe(folder: Path, freeze: str = "text", **more: Any) -> Recipe:
    """A tiny wav2vec2 before the words of a text tower, on waveforms; ``freeze`` names the towers that are frozen."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        splits = {"train": examples(32, 0), "test": examples(8, 1)}
        tokenizers: dict[str, Any] = {"text": train_words(WORDS), "image": PixelTokenizer(2, 5)}
        write_dataset(folder / "data", splits, tokenizers, waveforms={"speech": RATE})
    model = MODELS["wav2vec2"] | {"feat_extract_norm": "layer"}
    speech = {"kind": "hf_encoder", "config": {"model": model, "sample_rate": RATE}}
    towers = {name: tower | {"freeze": name in freeze} for name, tower in {"text": TEXT, "speech": speech}.items()}
    recipe = {
        "name": "hears",
        "spec": {"name": "hears", "towers": towers, "links": [PREFIX]},
        "data": "data",
        "pretrain": {"text": {"steps": 2, "batch_size": 8}},
        "train": {"steps": 8, "batch_size": 8, "log_every": 2, "save_every": 4, "learning_rate": 1e-2},
        "evaluate": {"split": "test", "max_tokens": 4},
        **more,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return load_recipe(folder / "recipe.yaml")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps with a trained encoder."""
    folder = tmp_path_factory.mktemp("hears")
    train(tiny_recipe(folder), folder / "run")
    return folder / "run"


@pytest.mark.parametrize(
    "link",
    [
        PREFIX,
        {"kind": "resampler", "config": {"queries": 2, "depth": 1, "n_heads": 2, "output": "prefix"}},
        {"kind": "cross_attention", "every": 1, "config": {"n_heads": 2}},
    ],
    ids=lambda link: link["kind"],
)
def test_an_answer_to_sound_is_that_of_the_whole_sequence(link: dict[str, Any]) -> None:
    """A segment that is not causal is seen only once it is complete, at the very end of such a prompt."""
    speech = {"kind": "hf_encoder", "config": {"model": MODELS["wav2vec2"], "sample_rate": RATE}}
    zipped = sharp(make({"text": tower(2, 8, 8, {"tied": False}), "speech": speech}, [PREFIX | link]))
    numbers = np.random.default_rng(0)
    prompts = [[Segment("speech", numbers.uniform(-1, 1, n))] for n in (30, 80, 47, 20, 64)]
    expected = [greedy(zipped, prompt, ["text"], 5)[0].tokens for prompt in prompts]
    assert [row[0].tokens for row in generate_batch(zipped, prompts, ["text"], 5)] == expected
    assert len({tuple(tokens) for tokens in expected}) > 1, "the answer depends on what was heard"


def test_it_learns_what_it_hears(tmp_path: Path) -> None:
    phase = {"steps": 150, "batch_size": 16, "learning_rate": 3e-3}
    train(tiny_recipe(tmp_path, freeze="", train=phase, pretrain={}), tmp_path / "run")
    # So little is learnt by heart, but each recording must be heard to know which one it is.
    (score,) = evaluate(tmp_path / "run", split="train").tasks
    assert score.wer < 0.3 < score.wer_before


@pytest.mark.parametrize("freeze", ["text", "text, speech"])
def test_a_stopped_run_goes_on_to_the_bit(
    tmp_path: Path, finished: Path, freeze: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole = tiny_recipe(tmp_path, freeze), finished
    if freeze != "text":
        whole = tmp_path / "whole"
        train(recipe, whole)
    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError, match="after step 3 of train"):
        # Pre-training takes only two steps.
        on_step(patch, 2, interrupt)
        train(recipe, run)
    train(recipe, run)
    assert_same_run(run, whole)


def test_frozen_towers_do_not_move_and_are_kept_with_the_run(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path, "text, speech"), tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert all((run.tower(name) / "tower.json").exists() for name in ("text", "speech")), "they have no other source"
    drawn, kept = compile(run.recipe().spec), load(run.path)
    states = kept.model.tower("speech").state_dict()
    assert all(torch.equal(states[name], tensor) for name, tensor in drawn.model.tower("speech").state_dict().items())
    (text,) = evaluate(run.path).retention
    assert (text.tower, text.frozen, text.change) == ("text", True, 0.0)


def test_the_report_shows_who_sees_the_sound(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[Masks] = []
    draw = zippkit.report.plots.mask_picture

    def watched(masks: Masks, row: int, name: str) -> str:
        caught.append(masks)
        return draw(masks, row, name)

    monkeypatch.setattr(zippkit.report.plots, "mask_picture", watched)
    page = write_report(finished).read_text()
    assert "The shortest examples of speech → text in test" in page and "FAILS" not in page
    assert {token.label for token in caught[0].tokens["speech"][0]} == {"~"}
    assert caught[0].tokens["text"][0][-2].label in WORDS


def test_without_its_data_the_report_makes_sound_up(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    assert "No examples of the dataset can be shown" in write_report(tmp_path / "run").read_text()


def test_sound_is_heard_as_it_was_in_training(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = said([0, 2], 5)
    write_audio(tmp_path / "in.wav", wave, RATE)
    write_audio(tmp_path / "fast.wav", np.repeat(wave, 2), 2 * RATE)
    seen: list[Segment] = []
    generate = zippkit.evaluation.conversation.generate

    def watched(zipped: Any, prompt: list[Segment], *rest: Any, **named: Any) -> list[Segment]:
        seen.extend(prompt)
        return generate(zipped, prompt, *rest, **named)

    monkeypatch.setattr(zippkit.evaluation.conversation, "generate", watched)
    for name in ("in", "fast"):
        (line,) = answer(finished, [Given(tmp_path / f"{name}.wav")], max_tokens=4)
        assert line.startswith("text: ")
    assert [segment.tower for segment in seen] == ["speech", "speech"]
    np.testing.assert_array_equal(seen[0].tokens, read_audio(tmp_path / "in.wav")[0])
    assert len(seen[1].tokens) == len(wave)


def test_images_of_grey_levels_train_an_encoder_of_pixels(tmp_path: Path) -> None:
    tiny_recipe(tmp_path)
    image = {"kind": "hf_encoder", "config": {"model": MODELS["vit"]}}
    link = {"kind": "cross_attention", "from": "image", "into": "text", "every": 1, "config": {"n_heads": 2}}
    spec = {"name": "looks", "towers": {"text": TEXT, "image": image}, "links": [link]}
    recipe = tiny_recipe(tmp_path, spec=spec, pretrain={})
    train(recipe, tmp_path / "run")
    (score,) = evaluate(tmp_path / "run").tasks
    assert score.task == "image -> text" and len(score.answers) == 8


def test_the_command_line_from_recordings_to_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_recipe(tmp_path)
    for i, example in enumerate(examples(20, 2)):
        (tmp_path / "corpus").mkdir(exist_ok=True)
        write_audio(tmp_path / "corpus" / f"{i}.wav", np.asarray(example.items["speech"], np.float32), RATE)
        (tmp_path / "corpus" / f"{i}.txt").write_text(str(example.items["text"]))
    share = "fractions={train: 0.6, test: 0.4}"
    steps = [
        ("prepare", "pairs", "corpus", "-o", "heard", "--waveform", RATE, "--text", tmp_path / "words.json", share),
        ("train", "recipe.yaml", "-o", "run", "data=heard"),
        ("eval", "run"),
        ("generate", "run", "--audio", "corpus/0.wav"),
    ]
    train_words(WORDS).save(tmp_path / "words.json")
    for arguments in steps:
        monkeypatch.setattr(sys, "argv", ["zippkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert not exit_.value.code, capsys.readouterr().err
    assert capsys.readouterr().out.splitlines()[-1].startswith("text: ")
    assert Dataset.open(tmp_path / "heard").manifest.modalities["speech"].sample_rate == RATE


def test_data_at_another_rate_are_refused_before_a_step(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    write_dataset(tmp_path / "slow", {"train": examples(4, 0)}, {"text": train_words(WORDS)}, waveforms={"speech": 400})
    with pytest.raises(DataError, match="speech holds 400 samples a second, tower 'speech' hears 800"):
        train(recipe.model_copy(update={"data": tmp_path / "slow"}), tmp_path / "run")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"train": {"steps": 2, "tasks": ["text -> speech"]}}, "train.tasks[0]: 'speech' is fed continuous inputs"),
        ({"pretrain": {"speech": {"steps": 2}}}, "pretrain.speech: continuous inputs have no next token to predict"),
    ],
)
def test_nothing_predicts_a_waveform(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        tiny_recipe(tmp_path, **more)
    assert message in str(caught.value)
