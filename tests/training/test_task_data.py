"""A dataset seen through tasks, and what is refused before a step is taken."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_encoders import MODELS
from helpers.tiny_runs import WORDS, examples, spec, write_data
from zippkit.data.dataset import Dataset, Example, Tokenizer
from zippkit.data.dataset_writer import write_dataset
from zippkit.data.pixel_tokenizer import PixelTokenizer
from zippkit.data.ragged import Ragged
from zippkit.data.text import ByteTokenizer, train_words
from zippkit.errors import DataError
from zippkit.plan.sequence_layout import Modality, SequenceLayout
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.spec.kinds import TowerConfig
from zippkit.spec.task import Task
from zippkit.training.data_checks import check_tokenizers
from zippkit.training.task_data import TaskData
from zippkit_towers.hf_encoder.config import HfEncoderConfig

HEARS = HfEncoderConfig(model=MODELS["wav2vec2"], sample_rate=800)
"""Convolutions of 5 and 3 samples, 3 and 2 apart: a state of 11 samples, and one more every 6."""
LOOKS = HfEncoderConfig(model=MODELS["vit"])
"""Images of one channel, 8 x 8."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_data(tmp_path_factory.mktemp("tasks") / "data")


def towers(**changes: dict[str, object]) -> dict[str, TowerConfig]:
    made = spec()
    for name, change in changes.items():
        made["towers"][name]["config"] |= change
    return {name: tower.settings for name, tower in CompositionSpec.model_validate(made).towers.items()}


def read(configs: Mapping[str, TowerConfig]) -> dict[str, Modality]:
    """What towers read, as `check_tokenizers` wants it."""
    return SequenceLayout().modalities(configs)


def test_a_task_gives_its_segments_in_order_and_the_loss_to_the_last(data: Dataset) -> None:
    task = TaskData(Task(("speech",), "text"), data, data.split("train"))
    assert len(task) == 24
    for i, example in enumerate(examples(24, 0)):
        speech, text = task.segments(i)
        assert (speech.tower, speech.loss, text.tower, text.loss) == ("speech", False, "text", True)
        assert np.array_equal(speech.tokens, example.items["speech"])
        assert text.tokens.tolist() == [3 + WORDS.index(word) for word in str(example.items["text"]).split()]
        (prompt,) = task.prompt(i)
        assert (prompt.tower, prompt.tokens.tolist()) == ("speech", speech.tokens.tolist())
        assert task.lengths[i] == len(speech.tokens) >= len(text.tokens)
    assert task.ids([3, 1]) == ("0-003", "0-001")


def test_a_tower_s_own_modality_is_a_task_without_a_prompt(data: Dataset) -> None:
    task = TaskData(Task((), "text"), data, data.split("test"))
    assert task.prompt(0) == []
    assert [segment.loss for segment in task.segments(0)] == [True]
    assert task.lengths.tolist() == [len(str(example.items["text"]).split()) for example in examples(6, 1)]


def test_data_that_fit_are_taken(data: Dataset) -> None:
    check_tokenizers(data, read(towers()))
    check_tokenizers(data, read(towers()), data.fingerprints)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": {"vocab_size": 6}}, "text has 7 token ids, the tower 6; expected towers.text.config.vocab_size: 7"),
        ({"speech": {"vocab_size": 7}}, "speech has 8 token ids, the tower 7"),
    ],
)
def test_a_vocabulary_that_is_too_small(data: Dataset, changes: dict[str, dict[str, object]], message: str) -> None:
    made = towers()
    for name, change in changes.items():
        made[name] = made[name].model_copy(update=change)
    with pytest.raises(DataError, match=message):
        check_tokenizers(data, read(made))


def test_another_frame_or_a_modality_that_is_not_there(data: Dataset) -> None:
    made = towers()
    frame = made["speech"].frame
    with pytest.raises(
        DataError, match=r"text begins with 1 and ends with 2, .* expected towers.text.frame: {begin: 1, end: 2}"
    ):
        check_tokenizers(data, read(made | {"text": made["text"].model_copy(update={"frame": frame})}))
    with pytest.raises(DataError, match=r"no modality is called 'spech'; did you mean 'speech'\?"):
        check_tokenizers(data, read({"spech": made["speech"]}))


def test_every_misfit_is_told_and_what_no_task_needs_may_be_missing(data: Dataset) -> None:
    made = towers()
    frame = made["speech"].frame
    wrong = {
        "text": made["text"].model_copy(update={"vocab_size": 6, "frame": frame}),
        "speech": made["speech"].model_copy(update={"vocab_size": 7}),
        "image": made["speech"],
    }
    with pytest.raises(DataError) as caught:
        check_tokenizers(data, read(wrong))
    told = str(caught.value).splitlines()
    assert len(told) == 4
    assert all(line.startswith(f"{data.path}: ") for line in told)
    assert [words in line for words, line in zip(("7 token", "begins", "8 token", "'image'"), told, strict=True)]
    three = made | {"image": made["speech"]}
    check_tokenizers(data, read(three), data.fingerprints, tasks=[Task(("speech",), "text")])
    with pytest.raises(DataError, match="no modality is called 'image'"):
        check_tokenizers(data, read(three), tasks=[Task(("image",), "text")])
    with pytest.raises(DataError, match="text has 7 token ids"):
        check_tokenizers(data, read(three | {"text": wrong["text"]}), tasks=[Task((), "speech")])


def test_tokens_of_another_tokenizer(data: Dataset, tmp_path: Path) -> None:
    same_size = write_data(tmp_path / "words", words=[*WORDS[:-1], "zero"])
    with pytest.raises(DataError, match=r"its text tokens were made by another tokenizer \([0-9a-f]{12}\)"):
        check_tokenizers(same_size, read(towers()), data.fingerprints)
    units = train_words(WORDS)
    splits = {"train": examples(4, 0)}
    assert (
        check_tokenizers(write_dataset(tmp_path / "same", splits, {"text": units}), read(towers()), data.fingerprints)
        is None
    )
    with pytest.raises(DataError, match="text has 258 token ids"):
        check_tokenizers(write_dataset(tmp_path / "bytes", splits, {"text": ByteTokenizer()}), read(towers()))


def test_a_sequence_that_is_too_long_is_named(data: Dataset) -> None:
    task = TaskData(Task(("speech",), "text"), data, data.split("train"))
    longest = int(task.lengths.argmax())
    n_tokens = int(task.lengths[longest]) + 2
    task.check_lengths(towers(speech={"max_len": n_tokens}, text={"max_len": 6}))
    n_long = int((task.lengths + 2 > n_tokens - 1).sum())
    expected = (
        f"example 0-{longest:03d} has {n_tokens} speech tokens, and {n_long} of 24 examples have more than the "
        f"{n_tokens - 1} that the tower takes"
    )
    with pytest.raises(DataError, match=expected):
        task.check_lengths(towers(speech={"max_len": n_tokens - 1}))
    with pytest.raises(DataError, match=r"6 text tokens, .* more than the 5"):
        task.check_lengths(towers(text={"max_len": 5}))
    task.check_lengths({name: config.model_copy(update={"max_len": None}) for name, config in towers().items()})


def test_a_tower_that_comes_twice_needs_room_for_both(data: Dataset) -> None:
    task = TaskData(Task(("text", "speech"), "text"), data, data.split("train"))
    with pytest.raises(DataError, match="12 text tokens"):
        task.check_lengths(towers(text={"max_len": 11}))
    task.check_lengths(towers(text={"max_len": 12}))


def test_a_task_passes_over_examples_that_lack_one_of_its_modalities(tmp_path: Path) -> None:
    shown = [Example(f"shown{i}", "", 0.0, {"text": "one two", "image": np.full(i, 3)}) for i in range(1, 4)]
    said = [Example(f"said{i}", "", 0.0, {"text": "three", "speech": np.full(i, 2)}) for i in range(1, 3)]
    tokenizers: dict[str, Tokenizer] = {
        "text": train_words(WORDS),
        "image": PixelTokenizer(),
        "speech": PixelTokenizer(1, 8),
    }
    mixed = [shown[0], said[0], shown[1], said[1], shown[2]]
    dataset = write_dataset(tmp_path / "data", {"train": mixed}, tokenizers, partial=True)
    split = dataset.split("train")
    task = TaskData(Task(("text",), "image"), dataset, split)
    assert task.ids(range(len(task))) == ("shown1", "shown2", "shown3")
    assert task.lengths.tolist() == [2, 2, 3]
    text, image = task.segments(2)
    assert text.tokens.tolist() == train_words(WORDS).encode("one two") and image.tokens.tolist() == [3, 3, 3]
    assert task.example(1).id == "shown2"
    assert len(TaskData(Task((), "text"), dataset, split)) == 5
    with pytest.raises(
        DataError, match=r"none of 5 .* task 'speech -> image' needs \(there are 5 text, 3 image, 2 speech"
    ):
        TaskData(Task(("speech",), "image"), dataset, split)
    with pytest.raises(DataError, match="shown3 has 5 image tokens, and 1 of 3"):
        task.check_lengths(towers(text={"max_len": 9}) | {"image": towers(speech={"max_len": 4})["speech"]})


LENGTHS = [30, 11, 47, 23]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four waveforms, and images of 2 x 2 pixels."""
    numbers = np.random.default_rng(0)
    made = [
        Example(f"w{i}", "", 0.0, {"text": "one", "speech": numbers.uniform(-1, 1, n), "image": np.array([0, 1, 2, i])})
        for i, n in enumerate(LENGTHS)
    ]
    tokenizers: dict[str, Tokenizer] = {"text": train_words(WORDS), "image": PixelTokenizer(2, 5)}
    folder = tmp_path_factory.mktemp("sounds") / "data"
    return write_dataset(folder, {"train": made}, tokenizers, waveforms={"speech": 800})


def test_a_tower_of_waveforms_is_given_waveforms(sounds: Dataset) -> None:
    read: dict[str, TowerConfig] = {"text": towers()["text"], "speech": HEARS}
    check_tokenizers(sounds, SequenceLayout().modalities(read), sounds.fingerprints)
    split = sounds.split("train")
    task = TaskData(Task(("speech",), "text"), sounds, split, read)
    task.check_lengths(read)
    assert task.lengths.tolist() == LENGTHS
    speech, text = task.segments(2)
    assert (speech.tower, speech.loss, text.loss) == ("speech", False, True)
    assert speech.tokens.dtype == np.float32 and text.tokens.tolist() == [3 + WORDS.index("one")]
    np.testing.assert_array_equal(speech.tokens, split[2].items["speech"])
    np.testing.assert_array_equal(task.prompt(2)[0].tokens, speech.tokens)


def test_no_waveform_is_read_before_it_is_needed(sounds: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[str, TowerConfig] = {"text": towers()["text"], "speech": HEARS.model_copy(update={"max_len": 99})}
    row = Ragged.row

    def watched_row(column: Ragged, index: int) -> np.ndarray:
        return pytest.fail("a waveform was read") if column.values.dtype == np.int16 else row(column, index)

    with monkeypatch.context() as watched:
        watched.setattr(Ragged, "row", watched_row)
        task = TaskData(Task(("speech",), "text"), sounds, sounds.split("train"), read)
        task.check_lengths(read)
        assert task.lengths.max() == 47 and task.ids([3]) == ("w3",) and task.item(0, "text") == "one"
        with pytest.raises(pytest.fail.Exception, match="a waveform was read"):
            task.prompt(0)


def test_a_waveform_of_which_no_state_can_be_made_is_named(sounds: Dataset) -> None:
    task = TaskData(Task(("speech",), "text"), sounds, sounds.split("train"))
    text = towers()["text"]
    wide = HfEncoderConfig(model=MODELS["wav2vec2"] | {"conv_kernel": [9, 3]}, sample_rate=800)
    with pytest.raises(DataError, match="example w1, speech: got 11 samples; expected at least 15") as caught:
        task.check_lengths({"text": text, "speech": wide})
    assert len(str(caught.value).splitlines()) == 1
    # 47 samples make 15 and then 7 states.
    task.check_lengths({"text": text, "speech": HEARS.model_copy(update={"max_len": 7})})
    with pytest.raises(DataError, match="example w2 has 7 speech states, and 1 of 4 examples have more than the 6"):
        task.check_lengths({"text": text, "speech": HEARS.model_copy(update={"max_len": 6})})


def test_a_waveform_past_the_window_is_named(sounds: Dataset) -> None:
    short = MODELS["whisper"] | {"max_source_positions": 1}
    whisper = HfEncoderConfig(model=short)
    made = [Example("long", "", 0.0, {"speech": np.zeros(321)}), Example("none", "", 0.0, {"speech": np.zeros(0)})]
    folder = sounds.path.with_name("long")
    written = write_dataset(folder, {"train": made}, {}, waveforms={"speech": 16_000})
    task = TaskData(Task((), "speech"), written, written.split("train"))
    with pytest.raises(DataError) as caught:
        task.check_lengths({"speech": whisper})
    none, long = str(caught.value).splitlines()
    assert "example none, speech: got 0 samples" in none and "example long, speech: got 321 samples" in long


def test_a_tower_of_images_is_given_floats(sounds: Dataset) -> None:
    read: dict[str, TowerConfig] = {"text": towers()["text"], "image": LOOKS}
    check_tokenizers(sounds, SequenceLayout().modalities(read), sounds.fingerprints)
    task = TaskData(Task(("image",), "text"), sounds, sounds.split("train"), read)
    task.check_lengths(read)
    image = task.prompt(3)[0].tokens
    assert image.shape == (1, 8, 8) and LOOKS.n_states(image) == 5
    np.testing.assert_array_equal(image[0, ::4, ::4], [[-1, -0.5], [0, 0.5]])


@pytest.mark.parametrize(
    ("name", "tower", "message"),
    [
        (
            "speech",
            HEARS.model_copy(update={"sample_rate": 16_000}),
            r"speech holds 800 samples a second, tower 'speech' hears 16000; expected a dataset prepared with "
            r"--waveform 16000 --resample \(or, .*towers.speech.config.sample_rate: 800\)",
        ),
        ("speech", LOOKS, "speech holds waveforms, but tower 'speech' is fed images; expected a modality of pixels"),
        ("image", HEARS, "image holds pixels, but tower 'image' is fed waveforms; .* --waveform 800, or a tower of"),
        ("text", HEARS, "text holds text, but tower 'text' is fed waveforms"),
        (
            "image",
            HfEncoderConfig(model=MODELS["vit"] | {"image_size": 9, "patch_size": 3}),
            "image holds images of 2 x 2 pixels, and tower 'image' is fed 9 x 9; expected a multiple of 2",
        ),
    ],
)
def test_what_a_continuous_tower_cannot_be_fed(sounds: Dataset, name: str, tower: TowerConfig, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_tokenizers(sounds, SequenceLayout().modalities({name: tower}))


def test_waveforms_are_no_token_ids(sounds: Dataset, data: Dataset) -> None:
    with pytest.raises(DataError, match=r"speech holds waveforms, but tower 'speech' reads token ids; .*--waveform\)"):
        check_tokenizers(sounds, read(towers()))
    with pytest.raises(DataError, match="speech holds token ids, but tower 'speech' is fed waveforms"):
        check_tokenizers(data, SequenceLayout().modalities({"speech": HEARS}))


def test_a_continuous_tower_that_does_not_tell_takes_any_waveform(sounds: Dataset) -> None:
    class Mute(HfEncoderConfig):
        @property
        def feed(self) -> None:
            return None

    mute = Mute(model=MODELS["wav2vec2"])
    check_tokenizers(sounds, SequenceLayout().modalities({"speech": mute}))
    with pytest.raises(DataError, match="--waveform RATE"):
        check_tokenizers(sounds, SequenceLayout().modalities({"image": mute}))
