"""Read an experiment's YAML, or those of a folder, and check all that can be told without its recipes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zippkit.errors import Problem, SpecError, did_you_mean
from zippkit.experiment.checks import complaints_of
from zippkit.experiment.format import Experiment
from zippkit.spec.inheritance import read_yaml
from zippkit.spec.validation import validate
from zippkit.spec.yaml_document import Document


@dataclass(frozen=True)
class ExperimentFile:
    """An experiment, and where each of its values stands."""

    document: Document
    experiment: Experiment


def load_experiment(path: Path) -> ExperimentFile:
    """Read and check one experiment; its recipes are checked when its grid is laid out.

    Raises:
        SpecError: every problem found, with file, line and key.
    """
    document = read_yaml(path)
    experiment, complaints = validate(Experiment, document.data)
    if experiment is not None:
        complaints = list(complaints_of(experiment))
    if experiment is None or complaints:
        raise SpecError([document.problem(place, message) for place, message in complaints])
    return ExperimentFile(document, experiment)


def files_of(folder: Path) -> dict[str, Path]:
    """A folder's experiments, by name of the file.

    Raises:
        SpecError: there are none.
    """
    files = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if not files:
        raise SpecError([Document(str(folder), None).problem((), "no experiment is there (*.yaml)")])
    return files


def load_experiments(folder: Path, only: Sequence[str] | None = None) -> list[ExperimentFile]:
    """Every experiment of a folder, or those of the files named in ``only``, by their place on the page.

    Raises:
        SpecError: every problem of every file.
    """
    files = files_of(folder)
    wanted = list(files) if only is None else [name.strip() for name in only]
    for name in wanted:
        if name not in files:
            message = f"no experiment is called {name!r}{did_you_mean(name, files)}"
            raise SpecError([Document(str(folder), None).problem((), message)])
    loaded: list[ExperimentFile] = []
    problems: list[Problem] = []
    for name in dict.fromkeys(wanted):
        try:
            loaded.append(load_experiment(files[name]))
        except SpecError as error:
            problems += error.problems
    problems += _same_names(loaded)
    if problems:
        raise SpecError(problems)
    return sorted(loaded, key=lambda file: (file.experiment.place, file.experiment.name))


def _same_names(loaded: Sequence[ExperimentFile]) -> Iterator[Problem]:
    """Experiments are known by their names, on the page and as files beside it."""
    first: dict[str, str] = {}
    for file in loaded:
        other = first.setdefault(file.experiment.name, file.document.file)
        if other != file.document.file:
            message = f"{file.experiment.name!r} is the name of {other} too; give one of them another"
            yield file.document.problem(("name",), message)
