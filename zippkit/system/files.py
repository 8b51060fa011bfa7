"""Files and folders that appear whole or not at all, locks on folders, and names that stay inside their folder.

Whatever is written goes first into a scratch folder beside its target, ``.NAME.<random>.zippkit-tmp``, is brought to
the disk, and is then renamed; what stood there before is exchanged with it in one step, so that a kill at any moment
leaves the older or the newer one. A scratch folder is locked while its process lives, so the next one that writes
beside it can tell what a killed process left, and removes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

from zippkit.errors import WriteError, ZippkitError

SCRATCH = ".zippkit-tmp"
"""How the names of scratch folders end."""
LOCK = ".lock"
_REPLACED = "replaced"
"""Inside a scratch folder: what stood at the target, while two renames take the place of an exchange."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Errors that only writing has, whichever file a library names with them."""
_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""How file systems say that they know no such lock."""


@contextmanager
def appearing(target: str | Path) -> Iterator[Path]:
    """A path to write a file or a folder at, which becomes ``target`` if nothing fails and vanishes otherwise.

    Its name is the target's, its folder a scratch one beside it. Files get the permissions that the umask says, whoever
    wrote them. A device or a pipe is written to as it is.

    Raises:
        WriteError: the disk is full or read-only, or the target's folder cannot be written; names the target.
    """
    path = Path(os.path.abspath(target))  # noqa: PTH100 (a link is replaced, not what it points at)
    with writing(target):
        if path.exists() and not (path.is_file() or path.is_dir()):
            yield path
            return
        with scratch(path) as beside:
            new = beside / path.name
            yield new
            _settle(new, mode=beside.stat().st_mode & 0o666)
            _put(new, path, beside / _REPLACED)
            _sync(path.parent)


def write_text(target: str | Path, text: str) -> None:
    """Write a text file, whole or not at all; raises as `appearing`."""
    with appearing(target) as new:
        new.write_text(text, encoding="utf-8")


def write_bytes(target: str | Path, content: bytes) -> None:
    """Write a file, whole or not at all; raises as `appearing`."""
    with appearing(target) as new:
        new.write_bytes(content)


def write_json(target: str | Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; raises as `appearing`."""
    write_text(target, json.dumps(value, indent=2))


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, which also fails on lists within lists without end, and on bytes that are no text.

    Raises:
        ValueError: not JSON, or not UTF-8.
    """
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text)
    except RecursionError as error:
        raise ValueError("lists or objects within each other, too many to read") from error


@contextmanager
def writing(target: str | Path) -> Iterator[None]:
    """Turn what a full or read-only disk makes libraries raise inside into one message that names ``target``.

    Raises:
        WriteError: the disk is full or read-only, or the target's folder cannot be written.
    """
    try:
        yield
    except WriteError as error:
        raise WriteError(target, error.reason) from error.__cause__
    except Exception as error:
        reason = _why_not(error, Path(target))
        if not reason:
            raise
        raise WriteError(target, reason) from error


def _why_not(error: Exception, target: Path) -> str:
    """Why the target could not be written; empty where the error is about something else."""
    if not isinstance(error, OSError):
        # safetensors and tokenizers have exceptions of their own, with the system's words in them.
        return next((reason for reason in map(os.strerror, FULL) if reason in str(error)), "")
    if error.filename is None:
        ours = error.errno == errno.EIO
    else:
        named = os.path.abspath(os.fsdecode(error.filename))  # noqa: PTH100
        ours = SCRATCH in named or named in (os.path.abspath(target), os.path.abspath(target.parent))  # noqa: PTH100
    return error.strerror or str(error) if ours or error.errno in FULL else ""


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """A locked folder beside the target, removed in the end."""
    remove_abandoned(target.parent)
    folder, lock = _locked_folder(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder(target: Path) -> tuple[Path, int]:
    # The name may be as long as names can be, and only says whose the folder is.
    folder = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}{SCRATCH}")
    folder.mkdir()
    try:
        lock = os.open(folder, os.O_RDONLY)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
    except FileNotFoundError:
        return _locked_folder(target)
    if folder.exists():
        return folder, lock
    # Somebody who cleans up came between the first two lines and took it for an abandoned one.
    os.close(lock)
    return _locked_folder(target)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left half written in a folder, and put back what one of them had moved aside."""
    for left in folder.glob(f".*{SCRATCH}"):
        try:
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for moved in (left / _REPLACED).glob("*"):
                if not os.path.lexists(folder / moved.name):
                    moved.rename(folder / moved.name)
            shutil.rmtree(left, ignore_errors=True)
        except OSError:
            # Somebody still writes there, or the file system knows no locks.
            continue
        finally:
            os.close(lock)


def _settle(path: Path, mode: int) -> None:
    """Bring a file, or a folder with all that is in it, to the disk; files get ``mode``."""
    if path.is_symlink():
        return
    if path.is_dir():
        for inside_it in path.iterdir():
            _settle(inside_it, mode)
    elif path.stat().st_mode & 0o777 != mode:
        path.chmod(mode)
    _sync(path)


def _sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        # Some file systems cannot do this with a folder.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(opened)


def _put(new: Path, target: Path, aside: Path) -> None:
    """Rename ``new`` to ``target``; what is there already is exchanged with it, and is gone with the scratch folder.

    Where the system cannot exchange, it is moved aside for the moment between two renames: whoever is killed then
    leaves it in the scratch folder, from which `remove_abandoned` puts it back.
    """
    if target.is_dir() != new.is_dir() and os.path.lexists(target):
        wrong = errno.EISDIR if target.is_dir() else errno.ENOTDIR
        raise OSError(wrong, os.strerror(wrong), str(target))
    if not new.is_dir() or not os.path.lexists(target):
        new.replace(target)
    elif not _exchange(new, target):
        aside.mkdir()
        target.rename(aside / target.name)
        try:
            new.rename(target)
        except BaseException:
            (aside / target.name).rename(target)
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Give two files or folders each other's names in one step; False where the system or the file system cannot."""
    swap = _swap()
    if swap is None or swap(os.fsencode(one), os.fsencode(other)) == 0:
        return swap is not None
    if ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV):
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


@cache
def _swap() -> Any:
    """The system's call that exchanges two names; None where there is none."""
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return lambda one, other: library.renamex_np(one, other, ctypes.c_uint(2))
    if hasattr(library, "renameat2"):
        here = ctypes.c_int(-100)
        return lambda one, other: library.renameat2(here, one, here, other, ctypes.c_uint(2))
    return None


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Keep other processes from working in a folder; the system lets go of a killed one's lock, which is told.

    Args:
        folder: it is made if it is not there.
        doing: what others are told, as in "trains".

    Raises:
        ZippkitError: another process is at work there, or, where the file system has no locks, may be.
        WriteError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("ab+", buffering=0)
    with file:
        if told := _lock(file.fileno(), folder):
            print(f"{folder}: {told}", file=sys.stderr)
        with writing(folder / LOCK):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} {doing}".encode())
        try:
            remove_abandoned(folder)
            yield
        finally:
            # What a process leaves in it when it is killed tells the next one so.
            with suppress(OSError):
                file.truncate(0)


class _Holder(NamedTuple):
    """Whom a lock file names."""

    said: str
    """As it is written there; empty where nobody is named."""
    process: str
    host: str

    @classmethod
    def of(cls, file: int) -> Self:
        said = os.pread(file, 500, 0).decode(errors="replace").strip()
        found = re.match(r"process (\d+) on (\S+) ", said)
        return cls(said, *(found.groups() if found else ("", "")))

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def runs(self) -> bool:
        """Whether a process of its number runs on this host."""
        try:
            os.kill(int(self.process), 0)
        except PermissionError:
            return True
        except (ProcessLookupError, OverflowError):
            return False
        return True


def _lock(file: int, folder: Path) -> str:
    """Take the lock of a folder, and return what is to be told of who had it before.

    Raises:
        ZippkitError: somebody has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _Holder.of(file)
        where = "" if holder.is_here or not holder.host else f", on another host than this one ({socket.gethostname()})"
        who = (holder.said or "another process") + " there"
        raise ZippkitError(f"{folder}: {who}{where}; wait for it, or choose another folder") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return _without_locks(folder, _Holder.of(file))
    # Not before: who had it may have ended in between.
    holder = _Holder.of(file)
    if not holder.process:
        return ""
    left = f"left by process {holder.process} of host {holder.host}, which is not running; going on"
    other = " (it holds no lock any more, as far as the file system tells; see to it that it does not work here)"
    return left if holder.is_here else left + other


def _without_locks(folder: Path, holder: _Holder) -> str:
    """What is to be told where the file system knows no locks, so that only the file's words say who works there.

    Raises:
        ZippkitError: who is named there runs, or may run on another host.
    """
    none = "its file system has no locks; see to it that no other process works there"
    if not holder.process:
        return none
    if not holder.is_here:
        raise ZippkitError(
            f"{folder}: {holder.said} there, it says, and its file system has no locks that would tell whether it "
            f"still runs on that host; if it does not, remove {folder / LOCK}"
        )
    if holder.runs and int(holder.process) != os.getpid():
        raise ZippkitError(f"{folder}: {holder.said} there; wait for it, or choose another folder")
    return f"left by process {holder.process} of host {holder.host}, which is not running; going on"


def inside(folder: Path, name: str, *, follow: bool = False) -> Path:
    """The path of a file that another file (a manifest, an evaluation, an index of shards) names.

    Args:
        folder: the folder that the named file must be in.
        name: relative to the folder, with ``/`` between parts.
        follow: a symbolic link inside the folder may lead out of it, as in the Hugging Face cache.

    Raises:
        ValueError: an absolute name, one with ``..``, or one that leads out of the folder through a link.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise ValueError(f"{name!r} is not a name inside the folder; expected one such as 'model.safetensors'")
    path = folder / name
    # realpath, because a link may lead to another one.
    if not follow and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{name!r} leads out of the folder through a symbolic link; put the file itself there")
    return path
