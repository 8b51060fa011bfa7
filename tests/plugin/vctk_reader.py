"""A corpus that zippkit has never heard of: VCTK, with a folder of sounds and one of texts for each speaker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from zippkit.data.readers.base import Reader, existing_folder, read_text
from zippkit.data.records import Record, spoken
from zippkit.spec.kinds import Strict


class VctkConfig(Strict):
    test_speakers: list[str] = Field(default_factory=list, description="Speakers of the test split, such as [p225].")


class Vctk(Reader[VctkConfig]):
    Config: ClassVar[type[Strict]] = VctkConfig
    layout: ClassVar[str] = "wav48/<speaker>/<id>.wav and txt/<speaker>/<id>.txt"

    def read(self, root: Path) -> Iterator[Record]:
        for sound in sorted(existing_folder(root).glob("wav48/*/*.wav")):
            speaker = sound.parent.name
            split = "test" if speaker in self.options.test_speakers else "train"
            words = read_text(root / "txt" / speaker / f"{sound.stem}.txt")
            yield spoken(sound.stem, split, (sound,), words, speaker)
