"""From a sensor's readings to text, by a stranger's towers, as ids and as they are: prepare, train, eval, verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from helpers.plugins import register
from helpers.tiny_runs import zippkit
from zippkit.data.dataset import Dataset
from zippkit.errors import DataError
from zippkit.plan.sequence_layout import Modality, SequenceLayout
from zippkit.spec.composition_spec import CompositionSpec
from zippkit.testing import check_tower
from zippkit.training.data_checks import check_tokenizers

pytestmark = pytest.mark.slow

PLUGIN = Path(__file__).parents[1] / "plugin"
WORDS = ("walk", "run", "rest")


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Motion and what it is called, as a table with files; and the plugin as if it were installed."""
    monkeypatch.syspath_prepend(PLUGIN)
    from imu_frames import ImuFrames  # type: ignore[import-not-found]
    from imu_tower import Imu  # type: ignore[import-not-found]

    register(tmp_path, monkeypatch, "zippkit.towers", imu=Imu, imu_frames=ImuFrames)
    numbers = np.random.default_rng(0)
    folder = tmp_path / "corpus"
    (folder / "imu").mkdir(parents=True)
    for split, n in (("train", 60), ("test", 9)):
        rows = []
        for i in range(n):
            frames = (numbers.normal(i % 3 - 1, 0.1, (6 + i % 5, 6)) * [1, 10, 100, 1, 1, 1]).astype(np.float32)
            np.save(folder / "imu" / f"{split}{i}.npy", frames)
            rows.append(json.dumps({"id": f"{split}{i}", "imu": f"imu/{split}{i}.npy", "text": WORDS[i % 3]}))
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    return folder


def spec(imu: dict[str, Any]) -> dict[str, Any]:
    text = {"kind": "decoder", "config": {"vocab_size": 6, "dim": 16, "n_layers": 1, "n_heads": 2, "ffn_dim": 32}}
    link = {"kind": "gated_cross_attention", "from": "imu", "into": "text", "every": 1, "config": {"n_heads": 2}}
    return {"name": "motion", "towers": {"text": text | {"frame": {"begin": 1, "end": 2}}, "imu": imu}, "links": [link]}


WAYS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "units": (
        ["--tokenizer", "imu=frame_units", "imu.n_units=12"],
        {"kind": "imu", "config": {"vocab_size": 14, "dim": 8, "n_layers": 1}, "frame": {"begin": 12, "end": 13}},
    ),
    "frames": (["--tokenizer", "imu=none"], {"kind": "imu_frames", "config": {"channels": 6, "dim": 8, "n_layers": 1}}),
}
COLUMNS = "columns={imu: {column: imu, kind: features}, text: text}"


@pytest.mark.parametrize("way", WAYS)
def test_text_from_motion(way: str, corpus: Path, tmp_path: Path) -> None:
    options, tower = WAYS[way]
    done = zippkit("prepare", "table", corpus, "-o", tmp_path / "data", "--text", "words", *options, COLUMNS)
    assert done.returncode == 0, done.stderr
    assert "60 train, 9 test" in done.stdout
    phase = {"steps": 60, "batch_size": 12, "learning_rate": 2e-2, "save_every": 60, "tasks": ["imu -> text"]}
    how = {"split": "test", "max_tokens": 2, "batch_size": 9}
    recipe = {"name": "motion", "spec": spec(tower), "data": "data", "train": phase, "evaluate": how}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for words in (("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run"), ("eval", tmp_path / "run")):
        done = zippkit(*words)
        assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    (task,) = scores["tasks"]
    assert task["wer"] < 0.2 < task["wer_before"], scores
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec(tower)))
    done = zippkit("verify", tmp_path / "spec.yaml")
    assert done.returncode == 0, done.stdout
    for certificate in ("C1", "C2", "C3", "C7", "C9"):
        assert certificate in done.stdout


def test_the_tower_keeps_its_protocol(corpus: Path) -> None:
    from imu_frames import ImuFrames

    check_tower(ImuFrames(ImuFrames.Config(channels=6, dim=8, n_layers=2)))


def test_what_does_not_fit_is_told_at_once(corpus: Path, tmp_path: Path) -> None:
    def wanted(**towers: dict[str, Any]) -> dict[str, Modality]:
        made = CompositionSpec.model_validate({"name": "x", "towers": towers, "links": []})
        return SequenceLayout().modalities({name: tower.settings for name, tower in made.towers.items()})

    for way in WAYS:
        zippkit("prepare", "table", corpus, "-o", tmp_path / way, *WAYS[way][0], COLUMNS)
    units, frames = Dataset.open(tmp_path / "units"), Dataset.open(tmp_path / "frames")
    for way, dataset in (("units", units), ("frames", frames)):
        check_tokenizers(dataset, wanted(imu=WAYS[way][1]))
    with pytest.raises(
        DataError, match=r"imu holds frames of floats, but tower 'imu' reads .* --tokenizer imu=frame_u"
    ):
        check_tokenizers(frames, wanted(imu=WAYS["units"][1]))
    with pytest.raises(DataError, match=r"imu holds codes, but tower 'imu' is fed frames of floats of shape \(6,\)"):
        check_tokenizers(units, wanted(imu=WAYS["frames"][1]))

    from imu_frames import ImuFrames

    from zippkit.spec.kinds import Frames

    class Picky(ImuFrames.Config):  # type: ignore[misc]
        @property
        def feed(self) -> Frames:
            return Frames((3,), least=-1.0, most=1.0)

    picky = Picky(channels=3, dim=8, n_layers=1)
    with pytest.raises(DataError) as caught:
        check_tokenizers(frames, SequenceLayout().modalities({"imu": picky}))
    assert "imu holds frames of shape (6,), and tower 'imu' is fed (3,)" in str(caught.value)
    assert "and tower 'imu' takes -1 to 1; scale them" in str(caught.value)
