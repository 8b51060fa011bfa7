"""Speech whose words stand in a table of its own form: LJSpeech and Common Voice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from zippkit.data.readers.base import Reader, existing_folder
from zippkit.data.readers.drawn_splits import USUAL, DrawnSplits
from zippkit.data.readers.table_files import check_columns, delimited
from zippkit.data.records import Record, spoken
from zippkit.errors import DataError, did_you_mean
from zippkit.spec.kinds import Strict


class LjSpeechConfig(DrawnSplits):
    """Options of the reader of LJSpeech."""

    text: Literal["normalized", "original"] = Field(
        "normalized", description="normalized: the third column, numbers written as words; original: the second."
    )
    speaker: str = Field("LJ", description="Name of the only speaker.")


class LjSpeech(Reader[LjSpeechConfig]):
    """LJSpeech, and what is laid out like it; the split is drawn from the words."""

    Config: ClassVar[type[Strict]] = LjSpeechConfig
    layout: ClassVar[str] = "metadata.csv with lines id|text|normalized text, and wavs/<id>.wav"

    def read(self, root: Path) -> Iterator[Record]:
        table = existing_folder(root) / "metadata.csv"
        if not table.is_file():
            raise DataError(f"{table}: no such file; looked for {self.layout}")
        _, rows = delimited(table, "|", quoted=False, names=("id", "original", "normalized"))
        for row in rows:
            # Some copies have two columns, of which the second is normalised already.
            text = row.values.get(self.options.text, row.values.get("original"))
            id_ = row.values.get("id", f"{table.name}:{row.number}")
            record = spoken(id_, self.options.split_of(text or ""), (root / "wavs" / f"{id_}.wav",), text)
            trouble = (f"{table.name}:{row.number}: {row.trouble}",) if row.trouble else ()
            yield Record(id_, record.split, record.items, self.options.speaker, trouble=trouble)


class CommonVoiceConfig(Strict):
    """Options of the reader of Common Voice."""

    tables: list[str] = Field(
        default_factory=lambda: ["train", "dev", "test"],
        description="Tables to read, each a split of its name: train, dev, test, validated, other, invalidated.",
    )
    text: str = Field("sentence", description="Column of the words.")


class CommonVoice(Reader[CommonVoiceConfig]):
    """Common Voice, one language: the root is the folder with the tables."""

    Config: ClassVar[type[Strict]] = CommonVoiceConfig
    layout: ClassVar[str] = "train.tsv, dev.tsv, test.tsv with client_id, path and sentence, and clips/<path>"

    def read(self, root: Path) -> Iterator[Record]:
        tables = {name: self._table(root, name) for name in self.options.tables}
        opened = {path: delimited(path, "\t", quoted=False) for path in tables.values()}
        needed = ("client_id", "path", self.options.text)
        check_columns({path: names for path, (names, _) in opened.items()}, needed)
        for name, path in tables.items():
            for row in opened[path][1]:
                # Early releases left the suffix out.
                clip = Path(row.values.get("path", ""))
                file = root / "clips" / (clip.name if clip.suffix else f"{clip.name}.mp3")
                text, speaker = row.values.get(self.options.text), row.values.get("client_id", "")
                record = spoken(clip.stem or f"{path.name}:{row.number}", USUAL.get(name, name), (file,), text, speaker)
                trouble = (f"{path.name}:{row.number}: {row.trouble}",) if row.trouble else ()
                yield Record(record.id, record.split, record.items, speaker, trouble=trouble)

    def _table(self, root: Path, name: str) -> Path:
        there = [path.stem for path in existing_folder(root).glob("*.tsv")]
        if name not in there:
            raise DataError(f"{root}: no {name}.tsv{did_you_mean(name, there)}; looked for {self.layout}")
        return root / f"{name}.tsv"
