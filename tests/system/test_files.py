"""Files and folders appear whole or not at all, whatever is killed, full or in the way."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from zippkit.errors import WriteError, ZippkitError
from zippkit.system import files
from zippkit.system.files import SCRATCH, appearing, inside, locked, parse_json, remove_abandoned, write_text

pytestmark = pytest.mark.slow

_ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def _folder(path: Path, word: str) -> None:
    """Write a folder of two files that hold the same word."""
    with appearing(path) as new:
        (new / "below").mkdir(parents=True)
        (new / "one").write_text(word)
        (new / "below" / "two").write_text(word)


def _word(path: Path) -> str:
    words = {(path / "one").read_text(), (path / "below" / "two").read_text()}
    assert len(words) == 1, "half of one and half of the other"
    return words.pop()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_and_replaces_another(tmp_path: Path) -> None:
    for text in ("first", "second"):
        write_text(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_text() == text
    assert _names(tmp_path) == ["a.txt"]


def test_a_folder_replaces_another_one(tmp_path: Path) -> None:
    for word in ("first", "second"):
        _folder(tmp_path / "a", word)
        assert _word(tmp_path / "a") == word
    assert _names(tmp_path) == ["a"]


def test_where_names_cannot_be_exchanged_two_renames_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_swap", lambda: None)
    for word in ("first", "second"):
        _folder(tmp_path / "a", word)
        assert _word(tmp_path / "a") == word
    assert _names(tmp_path) == ["a"]


def test_a_failure_leaves_the_older_one(tmp_path: Path) -> None:
    _folder(tmp_path / "a", "first")
    with pytest.raises(RuntimeError, match="on purpose"), appearing(tmp_path / "a") as new:
        new.mkdir()
        raise RuntimeError("on purpose")
    assert _word(tmp_path / "a") == "first"
    assert _names(tmp_path) == ["a"]


_WRITER = """
import os, signal, sys
from pathlib import Path
from zippkit.system import files

target, stop_at, can_exchange = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
if not can_exchange:
    files._swap = lambda: None
calls = 0
def killed_at(call):
    def wrapped(*a, **k):
        global calls
        calls += 1
        if calls == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*a, **k)
    return wrapped
for module, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (os, "mkdir")):
    setattr(module, name, killed_at(getattr(module, name)))
if can_exchange:
    files._exchange = killed_at(files._exchange)
files.shutil.rmtree = killed_at(files.shutil.rmtree)
with files.appearing(target) as new:
    (new / "below").mkdir(parents=True)
    (new / "one").write_text("second")
    (new / "below" / "two").write_text("second")
"""


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_kill_at_any_moment_loses_nothing(tmp_path: Path, can_exchange: bool) -> None:
    for stop_at in range(1, 30):
        target = tmp_path / str(stop_at) / "a"
        target.parent.mkdir()
        _folder(target, "first")
        call = [sys.executable, "-c", _WRITER, str(target), str(stop_at), str(can_exchange)]
        done = subprocess.run(
            call, check=False, timeout=60, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        )
        assert done.returncode in (0, -signal.SIGKILL)
        if can_exchange:
            assert _word(target) in ("first", "second"), "there at every moment"
        remove_abandoned(target.parent)
        assert _word(target) in ("first", "second")
        assert _names(target.parent) == ["a"], "what the killed process left is removed"
        if done.returncode == 0:
            break
    assert done.returncode == 0
    assert stop_at > 8, "the kills came at every call"


def test_what_somebody_still_writes_is_left_alone(tmp_path: Path) -> None:
    with appearing(tmp_path / "a") as new:
        new.mkdir()
        write_text(tmp_path / "b", "beside it")
        assert new.exists()
    assert _names(tmp_path) == ["a", "b"]


def test_permissions_are_those_of_the_umask(tmp_path: Path) -> None:
    earlier = os.umask(0o027)
    try:
        with appearing(tmp_path / "a") as new:
            new.mkdir()
            os.close(os.open(new / "private", os.O_CREAT | os.O_WRONLY, 0o600))
        write_text(tmp_path / "b", "")
    finally:
        os.umask(earlier)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "a" / "private").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o640


def test_what_is_written_is_on_the_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    there: list[bool] = []

    def fsync(opened: int) -> None:
        synced.append(Path(f"/proc/self/fd/{opened}").readlink().name)
        there.append((tmp_path / "a").exists())

    monkeypatch.setattr(os, "fsync", fsync)
    _folder(tmp_path / "a", "word")
    assert sorted(synced[:4]) == ["a", "below", "one", "two"]
    assert there == [False] * 4 + [True], "and the folder that it stands in, after the rename"
    assert synced[4] == tmp_path.name


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_is_said_of_what_was_asked_for(tmp_path: Path, code: int) -> None:
    with pytest.raises(WriteError) as raised, appearing(tmp_path / "asked") as new:
        new.mkdir()
        with appearing(new / "part"):
            # As shutil names the file that it reads.
            raise OSError(code, os.strerror(code), str(tmp_path / "somewhere" / "else"))
    assert str(raised.value) == f"{tmp_path / 'asked'}: cannot be written: {os.strerror(code)}"
    assert _names(tmp_path) == []


def test_words_of_other_libraries_about_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="No space left"), appearing(tmp_path / "a"):
        raise ValueError("I/O error: No space left on device (os error 28)")


def test_a_source_that_cannot_be_read_is_named_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, appearing(tmp_path / "a"):
        (tmp_path / "source").read_text()
    assert raised.value.filename == str(tmp_path / "source")


def test_a_missing_folder_is_said_of_the_target(tmp_path: Path) -> None:
    with pytest.raises(WriteError) as raised:
        write_text(tmp_path / "missing" / "a.txt", "")
    assert str(raised.value) == f"{tmp_path / 'missing' / 'a.txt'}: cannot be written: No such file or directory"


def test_a_device_is_written_to(tmp_path: Path) -> None:
    write_text("/dev/null", "text")
    assert Path("/dev/null").is_char_device()


def test_a_link_is_replaced_and_what_it_points_at_is_left(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a").symlink_to(tmp_path / "precious")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "a").read_text() == "new"


def test_a_lock_keeps_others_out_and_names_who_has_it(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "run", "trains"),
        pytest.raises(ZippkitError, match=rf"run: process {os.getpid()} on .* trains there; wait for it"),
        locked(tmp_path / "run", "trains"),
    ):
        pass
    with locked(tmp_path / "run", "trains"):
        pass


def test_the_lock_of_a_killed_process_vanishes_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from zippkit.system.files import locked\n"
        "with locked(Path(sys.argv[1]), 'trains'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    call = [sys.executable, "-c", code, str(tmp_path)]
    killed = subprocess.run(call, check=False, timeout=60, env=_ENVIRONMENT)
    assert killed.returncode == -signal.SIGKILL
    (tmp_path / f".a.12345678{SCRATCH}").mkdir()
    with locked(tmp_path, "trains"):
        assert _names(tmp_path) == [".lock"], "what it left half written is removed too"
    told = rf"left by process \d+ of host {re.escape(socket.gethostname())}, which is not running; going on\n"
    assert re.search(told, capsys.readouterr().err)
    with locked(tmp_path, "trains"):
        pass
    assert not capsys.readouterr().err, "who ends by itself leaves nothing"


def test_a_lock_of_another_host_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".lock").write_text("process 12 on far trains")
    with (tmp_path / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with (
            pytest.raises(ZippkitError, match="process 12 on far trains there, on another host"),
            locked(tmp_path, "a"),
        ):
            pass
    with locked(tmp_path, "trains"):
        told = capsys.readouterr().err
    assert "left by process 12 of host far, which is not running; going on (it holds no lock any more" in told


@pytest.mark.parametrize(
    ("process", "host", "told"),
    [(12, "far", "remove .*lock"), (os.getppid(), socket.gethostname(), "wait for it"), (0, "", "")],
)
def test_without_locks_what_the_file_says_counts(
    process: int, host: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*given: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", unknown)
    (tmp_path / ".lock").write_text(f"process {process} on {host} trains" if host else "")
    with pytest.raises(ZippkitError, match=told) if told else nullcontext(), locked(tmp_path, "trains"):
        pass


@pytest.mark.parametrize("name", ["", ".", "/etc/passwd", "../a", "a/../../b", "a/..", "a\0b"])
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not a name inside the folder"):
        inside(tmp_path, name)


def test_links_that_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("")
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    (folder / "within").symlink_to(folder / "below")
    with pytest.raises(ValueError, match="leads out of the folder through a symbolic link"):
        inside(folder, "out/secret")
    assert inside(folder, "out/secret", follow=True).exists()
    assert inside(folder, "within/a") == folder / "within" / "a"
    (tmp_path / "link").symlink_to(folder)
    assert inside(tmp_path / "link", "below/a") == tmp_path / "link" / "below" / "a"


def test_json_that_is_too_deep_or_no_text() -> None:
    for content in ("[" * 100_000, b"[" * 100_000, b"\xff", "{"):
        with pytest.raises(ValueError, match=r".+"):
            parse_json(content)
    assert parse_json(b'{"a": [1]}') == {"a": [1]}


def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder" / "kept").mkdir(parents=True)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(WriteError, match=r"folder: .*[Ii]s a directory"):
        files.write_text(tmp_path / "folder", "new")
    with pytest.raises(WriteError, match=r"file: .*[Nn]ot a directory"), files.appearing(tmp_path / "file") as new:
        new.mkdir()
    assert (tmp_path / "folder" / "kept").is_dir()
    assert (tmp_path / "file").read_text() == "kept"
