"""`check_reader`: whether a reader keeps its protocol, on a small corpus in which nothing is wrong."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zippkit.data.readers.array_check import with_trouble
from zippkit.data.readers.base import Reader
from zippkit.data.records import SPLIT_NAME, File, Picture, Record, Sound, Source
from zippkit.errors import DataError, some_of
from zippkit.evaluation.plugin_checks.checks import SkippedCheck, run_checks
from zippkit.spec.kinds import Strict
from zippkit.spec.validation import validate


def check_reader(
    reader_class: type[Reader[Any]], root: str | Path, options: Mapping[str, Any] | None = None
) -> list[str]:
    """Check that a reader keeps its protocol (`zippkit.data.readers.base.Reader`).

    Options with descriptions, records of known types with ids of their own, files that are there, the same records when
    it reads again, and messages instead of tracebacks where there is no corpus.

    Args:
        reader_class: the reader.
        root: a small corpus in which nothing is wrong.
        options: for the reader.

    Returns:
        What could not be checked, and why.

    Raises:
        AssertionError: says in one sentence each what is wrong, everything at once.
    """
    return run_checks(reader_class.__name__, _CHECKS, _Corpus(reader_class, Path(root), dict(options or {})))


@dataclass(frozen=True)
class _Corpus:
    """A reader, and what it reads."""

    reader_class: type[Reader[Any]]
    root: Path
    options: dict[str, Any] = field(default_factory=dict)

    def read(self, root: Path) -> list[Record]:
        """Every record below a root."""
        config, complaints = validate(self.reader_class.Config, self.options)
        if config is None:
            raise SkippedCheck(f"the options are wrong: {some_of(message for _, message in complaints)}")
        return list(self.reader_class(config).read(root))

    @cached_property
    def records(self) -> list[Record]:
        """What the reader yields; no more is looked at where these are no records."""
        found = self.read(self.root)
        if not found or not all(isinstance(record, Record) for record in found):
            raise SkippedCheck("there are no records to look at")
        return found


def _options(corpus: _Corpus) -> Iterator[str]:
    config = getattr(corpus.reader_class, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Strict)):
        yield f"Config is {config!r}, expected a subclass of zippkit.spec.kinds.Strict"
        return
    bare = [name for name, option in config.model_fields.items() if not option.description]
    if bare:
        yield f"options without a description: {', '.join(bare)}"
    for place, message in validate(config, corpus.options)[1]:
        yield f"option {'.'.join(map(str, place))}: {message}"


def _layout(corpus: _Corpus) -> Iterator[str]:
    layout = getattr(corpus.reader_class, "layout", None)
    if not isinstance(layout, str) or not layout:
        yield "layout is missing: it is told where nothing was found, so say where the reader looks below the root"


def _records(corpus: _Corpus) -> Iterator[str]:
    found = corpus.read(corpus.root)
    others = sorted({type(record).__name__ for record in found if not isinstance(record, Record)})
    if others:
        yield f"read yields {', '.join(others)}, expected zippkit.data.records.Record"
    if not found:
        yield f"read yields nothing below {corpus.root}"


def _ids(corpus: _Corpus) -> Iterator[str]:
    ids = [record.id for record in corpus.records]
    if not all(isinstance(id_, str) and id_ for id_ in ids):
        yield "some ids are empty, or no text"
    twice = [repr(id_) for id_, count in Counter(ids).items() if count > 1]
    if twice:
        yield f"several records have the id {some_of(twice)}"


def _splits(corpus: _Corpus) -> Iterator[str]:
    wrong = sorted({str(r.split) for r in corpus.records if not re.fullmatch(SPLIT_NAME, str(r.split))})
    if wrong:
        yield f"splits {wrong}, expected names of letters, digits, underscores and dashes, such as train or test-other"


def _contents(corpus: _Corpus) -> Iterator[str]:
    for record in corpus.records:
        if record.segments is not None and record.items:
            yield f"record {record.id!r} has items and segments; a document has segments alone"
        sources = list(record.sources())
        if not sources and not record.trouble:
            yield f"record {record.id!r} holds nothing, and no trouble says why"
        for name, source in sources:
            if not str(name).isidentifier():
                yield f"record {record.id!r}: modality {name!r}, expected letters, digits and underscores"
            if not isinstance(source, Sound | Picture | str | np.ndarray):
                seen = type(source).__name__
                yield f"record {record.id!r}: {name} is a {seen}, expected Sound, Picture, str or an array"


def _what_is_told_of_them(corpus: _Corpus) -> Iterator[str]:
    for record in with_trouble(corpus.records):
        yield from (f"record {record.id!r}: {told}" for told in record.trouble)


def _files(corpus: _Corpus) -> Iterator[str]:
    for record in corpus.records:
        for name, source in record.sources():
            if isinstance(source, Sound) and not source.files:
                yield f"record {record.id!r}: {name} is a Sound without files"
            for file in _files_of(source):
                if isinstance(file, Path) and not file.is_file():
                    yield f"record {record.id!r}: {name}: {file}: no such file"
                elif not isinstance(file, Path) and not file.read_bytes():
                    yield f"record {record.id!r}: {name}: {file} is empty"


def _reading_again(corpus: _Corpus) -> Iterator[str]:
    before, after = corpus.records, corpus.read(corpus.root)
    if [_known(record) for record in before] != [_known(record) for record in after]:
        yield "a second read yields other records, or another order; sort what is listed, and seed what is drawn"


def _known(record: Record) -> tuple[object, ...]:
    """What must be the same when it is read again."""
    return record.id, record.split, record.speaker, [(name, _content(source)) for name, source in record.sources()]


def _content(source: Source) -> object:
    if isinstance(source, np.ndarray):
        return source.dtype.str, source.shape, source.tobytes()
    return [str(file) for file in _files_of(source)] or source


def _files_of(source: Source) -> tuple[File, ...]:
    if isinstance(source, Picture):
        return (source.file,)
    return source.files if isinstance(source, Sound) else ()


def _a_root_that_is_not_there(corpus: _Corpus) -> Iterator[str]:
    if not corpus.reader_class.needs_root:
        raise SkippedCheck("it needs no root")
    with tempfile.TemporaryDirectory() as empty:
        try:
            corpus.read(Path(empty) / "none")
        except DataError as error:
            if "none" not in str(error):
                yield f"where the root is missing its message does not name it: {error}"
        else:
            yield "a root that does not exist is no error; raise DataError (existing_folder does)"
        try:
            if corpus.read(Path(empty)):
                yield "an empty folder has records"
        except DataError:
            pass


_CHECKS = (
    _options,
    _layout,
    _records,
    _ids,
    _splits,
    _contents,
    _what_is_told_of_them,
    _files,
    _reading_again,
    _a_root_that_is_not_there,
)
