"""The command line where the disk, the memory or an installed package fails: one message, exit code 2, no traceback."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import zippkit.spec.registry
from helpers import tiny_runs
from zippkit import cli
from zippkit.errors import ZippkitError

pytestmark = pytest.mark.slow

Told = Callable[..., tuple[int, str]]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Told:
    """Run a command in this process: its exit code, and its standard error without progress and warnings."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["zippkit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr().err
        assert "Traceback" not in said
        lines = (line for line in said.splitlines() if "s left" not in line and not line.startswith("warning: "))
        return int(ended.value.code or 0), "\n".join(lines)

    return run


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """Writing more than so many bytes into a file fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny_runs.copied(tiny_runs.finished_run(), tmp_path / "copy")


@pytest.mark.parametrize("n_bytes", [0, 100, 1_000, 4_000, 10_000])
def test_train_on_a_full_disk(told: Told, tmp_path: Path, n_bytes: int) -> None:
    recipe = tiny_runs.write_recipe(tmp_path)
    with files_of_at_most(n_bytes):
        code, said = told("train", recipe, "--out", tmp_path / "run")
    assert code == 2
    assert said.startswith(f"{tmp_path / 'run'}") and said.endswith("cannot be written: File too large")
    assert "zippkit-tmp" not in said, "the scratch folder is nobody's concern"
    assert told("train", recipe, "--out", tmp_path / "run")[0] == 0, "and it goes on where there is room again"


@pytest.mark.parametrize("n_bytes", [0, 100])
@pytest.mark.parametrize("command", ["eval", "report"])
def test_scoring_on_a_full_disk(told: Told, run: Path, command: str, n_bytes: int) -> None:
    with files_of_at_most(n_bytes):
        code, said = told(command, run)
    assert code == 2
    file = run / (".lock" if n_bytes == 0 else "seconds.json" if command == "eval" else "certificates.json")
    assert said == f"{file}: cannot be written: File too large"


def test_sound_on_a_full_disk(told: Told, tmp_path: Path) -> None:
    out = tmp_path / "out.wav"
    command = ("generate", tiny_runs.demo_run(), "--text", "two", "--to", "speech", "--out", out)
    assert told(*command)[0] == 0
    before = out.read_bytes()
    with files_of_at_most(20):
        assert told(*command) == (2, f"{out}: cannot be written: File too large")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("command", ["train", "eval", "report"])
def test_a_read_only_run(told: Told, run: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    arguments = [run.parent / "recipe.yaml", "--out", run] if command == "train" else [run]
    real = Path.open

    def read_only(path: Path, mode: str = "r", *more: object, **others: object) -> object:
        if mode[0] in "wax" and run in path.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, mode, *more, **others)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", read_only)
    assert told(command, *arguments) == (2, f"{run}: cannot be written: Read-only file system")


def test_standard_output_on_a_full_disk(tmp_path: Path) -> None:
    spec = Path(__file__).parents[2] / "recipes" / "demo" / "spec.yaml"
    with Path("/dev/full").open("w") as full:
        call = [*tiny_runs.command("plan", spec)]
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "standard output: No space left on device\n"


def _no_memory(*_: object, **__: object) -> None:
    raise MemoryError


def _no_memory_for_torch(*_: object, **__: object) -> None:
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("failing", [_no_memory, _no_memory_for_torch])
def test_too_little_memory(
    told: Told, run: Path, monkeypatch: pytest.MonkeyPatch, failing: Callable[..., None]
) -> None:
    monkeypatch.setattr("zippkit.evaluation.evaluate.load", failing)
    code, said = told("eval", run)
    assert code == 2
    assert said.startswith("too little memory: ") and said.endswith("or a smaller model, need less")


def test_another_error_of_torch_is_a_bug(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes")

    monkeypatch.setattr("zippkit.evaluation.evaluate.load", broken)
    monkeypatch.setattr(sys, "argv", ["zippkit", "eval", str(run)])
    with pytest.raises(RuntimeError, match="shapes"):
        cli.main()


@pytest.mark.parametrize("module", ["zippkit", "zippkit.cli"])
def test_python_runs_the_module(module: str) -> None:
    call = [sys.executable, "-m", module, "towers"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("decoder ")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The entry points' file of a package that is installed for one test."""
    folder = tmp_path / "site" / "bad-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Name: bad\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder / "entry_points.txt"


def test_a_plugin_that_exits_is_told(told: Told, installed: Path, tmp_path: Path) -> None:
    (installed.parents[1] / "exiting.py").write_text("import sys\nsys.exit(0)\n")
    installed.write_text("[zippkit.towers]\nexiting = exiting:Tower\n")
    spec = tiny_runs.spec()
    spec["towers"]["text"] = {"kind": "exiting"}
    (tmp_path / "spec.yaml").write_text(tiny_runs.yaml.safe_dump(spec))
    code, said = told("check", tmp_path / "spec.yaml")
    assert code == 2
    assert "kind 'exiting' (exiting:Tower) cannot be imported: SystemExit: 0" in said


def test_entry_points_that_are_no_text(told: Told, installed: Path) -> None:
    installed.write_bytes(b"[zippkit.towers]\nbad = \xff\xfe:Tower\n")
    code, said = told("towers")
    assert code == 2
    assert said.startswith("installed package bad: its entry_points.txt is not UTF-8")


def test_more_than_anybody_generates(told: Told, run: Path) -> None:
    code, said = told("generate", run, "beams=100000", "--text", "two")
    assert code == 2 and "beams" in said and "256" in said
    code, said = told("generate", run, "--text", "two", "--max-tokens", "1000000000")
    assert code == 2 and "131072" in said


def test_a_kind_may_ask_for_the_end_of_the_process_only_by_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zippkit.spec.registry._imported("a", "b", interrupted)
    with pytest.raises(ZippkitError, match="cannot be imported: SystemExit"):
        zippkit.spec.registry._imported("a", "b", sys.exit)
