"""`check_reader`: zippkit's readers and a stranger's pass, and whatever breaks a reader is told by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from helpers.corpora import touch
from helpers.plugins import install
from helpers.sounds import tone
from helpers.tiny_runs import zippkit
from zippkit.data.audio import write_audio
from zippkit.data.readers.base import Reader, reader_class
from zippkit.data.records import Picture, Record, spoken
from zippkit.spec.kinds import Strict
from zippkit.spec.registry import READERS, kinds
from zippkit.testing import check_reader

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "data.md"


def vctk_like(root: Path) -> Path:
    for speaker in ("p225", "p226"):
        for index in range(3):
            sound = touch(root / "wav48" / speaker / f"{speaker}_{index}.wav")
            write_audio(sound, tone(0.3, index), 8000)
            touch(root / "txt" / speaker / f"{speaker}_{index}.txt", "please call")
    return root


def block(language: str, number: int = 0) -> str:
    """A code block of the page's section on readers of one's own."""
    section = PAGE.read_text().partition("### A reader of your own")[2]
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)
    return blocks[number]


def test_the_pages_reader_is_listed_checked_and_prepares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert block("python") == (ROOT / "tests" / "plugin" / "vctk_reader.py").read_text()
    entry = re.search(r'\[project\.entry-points\."(.*)"\]\n(\w+) = "(.*)"', block("toml"))
    assert entry
    install(tmp_path / "site", "vctk", entry[1], **{entry[2]: entry[3]})
    shutil.copy(ROOT / "tests" / "plugin" / "vctk_reader.py", tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    root = vctk_like(tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block("python", 1).replace("tests/corpus", "corpus"), names)
    names["test_vctk"]()
    assert re.search(r"^vctk +vctk +vctk_reader:Vctk$", zippkit("readers").stdout, re.MULTILINE)
    options = ["test_speakers=[p226]", "--waveform", "8000"]
    said = zippkit("prepare", "vctk", str(root), "-o", "data", *options)
    assert (said.returncode, said.stdout) == (0, "data: 3 train, 3 test\n"), said.stderr
    wrong = zippkit("prepare", "vctk", str(root), "-o", "other", "test_speaker=p226")
    assert "reader vctk: test_speaker: unknown key 'test_speaker'; did you mean 'test_speakers'?" in wrong.stderr


def test_the_page_names_every_option() -> None:
    table = PAGE.read_text().partition("### Columns of a table")[0].splitlines()
    rows = {line.split("|")[1].strip(" `"): line for line in table if line.startswith("| `")}
    for kind in kinds(READERS):
        cells = rows[kind.name] + (rows["table"] if kind.name == "hf" else "")
        missing = [name for name in reader_class(kind.name).Config.model_fields if f"`{name}`" not in cells]
        assert kind.package != "zippkit" or not missing, (kind.name, missing)


SEGMENTS = {"segments": [{"text": "a"}, {"units": {"ids": [1]}}]}
CORPORA: dict[str, Callable[[Path], Any]] = {
    "librilight": lambda root: touch(root / "small" / "1" / "book" / "a.flac", "x"),
    "ljspeech": lambda root: [touch(root / "metadata.csv", "a|b|c\n"), touch(root / "wavs" / "a.wav", "x")],
    "commonvoice": lambda root: [
        touch(root / "train.tsv", "client_id\tpath\tsentence\nme\ta.mp3\tyes\n"),
        touch(root / "dev.tsv", "client_id\tpath\tsentence\n"),
        touch(root / "test.tsv", "client_id\tpath\tsentence\n"),
        touch(root / "clips" / "a.mp3", "x"),
    ],
    "pairs": lambda root: [touch(root / "a.wav", "x"), touch(root / "a.txt", "b")],
    "fsdd": lambda root: touch(root / "1_jo_3.wav", "x"),
    "handwritten": lambda root: root,
    "table": lambda root: touch(root / "train.csv", "text\nyes\n"),
    "text": lambda root: touch(root / "a.txt", "yes\n\nno"),
    "documents": lambda root: touch(root / "a.jsonl", json.dumps(SEGMENTS)),
    "librispeech": lambda root: touch(root / "dev-clean" / "1" / "2" / "a.flac", "x"),
    "libritts": lambda root: touch(root / "dev-clean" / "1" / "2" / "a.wav", "x"),
}


@pytest.mark.parametrize("kind", CORPORA)
def test_zippkits_own_readers_keep_it(tmp_path: Path, kind: str) -> None:
    CORPORA[kind](tmp_path)
    skipped = check_reader(reader_class(kind), tmp_path)
    assert [line.split(":")[0] for line in skipped] == (["a root that is not there"] if kind == "handwritten" else [])


GOOD = Record("a", "train", {"text": "yes"})


class Good(Reader[Strict]):
    layout: ClassVar[str] = "<id>"

    def read(self, root: Path) -> Iterator[Record]:
        if not root.is_dir():
            from zippkit.errors import DataError

            raise DataError(f"{root}: no such folder")
        yield from self.found(root) if any(root.iterdir()) else ()

    def found(self, root: Path) -> Iterator[Record]:
        yield GOOD


class Drawn(Good):
    def found(self, root: Path) -> Iterator[Record]:
        yield replace(GOOD, items={"units": np.random.default_rng().integers(9, size=20)})


class Loose(Strict):
    how: int = 3


class Bare(Good):
    Config: ClassVar[type[Strict]] = Loose
    layout: ClassVar[str] = ""


class Careless(Good):
    def read(self, root: Path) -> Iterator[Record]:
        yield GOOD


def holding(*records: Any) -> type[Reader[Any]]:
    class Holding(Good):
        def found(self, root: Path) -> Iterator[Record]:
            yield from records

    return Holding


@pytest.mark.parametrize(
    ("reader", "told"),
    [
        (Drawn, ["a second read yields other records"]),
        (Bare, ["options without a description: how", "layout is missing"]),
        (Careless, ["a root that does not exist is no error", "an empty folder has records"]),
        (holding(), ["read yields nothing below"]),
        (holding("words", GOOD), ["read yields str, expected zippkit.data.records.Record"]),
        (holding(GOOD, GOOD), ["several records have the id 'a'"]),
        (holding(replace(GOOD, id="")), ["some ids are empty"]),
        (holding(replace(GOOD, split="test other")), ["splits ['test other'], expected names of letters"]),
        (holding(replace(GOOD, items={})), ["record 'a' holds nothing, and no trouble says why"]),
        (holding(replace(GOOD, items={"a b": "yes"})), ["record 'a': modality 'a b', expected letters"]),
        (holding(replace(GOOD, items={"text": b"yes"})), ["record 'a': text is a bytes, expected Sound"]),
        (holding(replace(GOOD, segments=(("text", "yes"),))), ["record 'a' has items and segments"]),
        (holding(spoken("a", "train", (), "yes")), ["record 'a': speech is a Sound without files"]),
        (holding(spoken("a", "train", (Path("none.wav"),), "y")), ["record 'a': speech: none.wav: no such file"]),
        (holding(Record("a", "train", {"image": Picture(Path("none.png"))})), ["image: none.png: no such file"]),
        (holding(Record("a", "train", {"units": np.array([-1])})), ["record 'a': units has id -1 at index 0"]),
        (holding(replace(GOOD, trouble=("torn",))), ["record 'a': torn"]),
    ],
)
def test_what_is_broken_is_told(tmp_path: Path, reader: type[Reader[Any]], told: list[str]) -> None:
    touch(tmp_path / "x")
    with pytest.raises(AssertionError, match=f"{reader.__name__} does not keep its protocol:") as caught:
        check_reader(reader, tmp_path)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) >= len(told)
    for sentence in told:
        assert any(sentence in line for line in lines), lines


def test_a_reader_that_keeps_it(tmp_path: Path) -> None:
    touch(tmp_path / "x")
    assert check_reader(Good, tmp_path) == []
