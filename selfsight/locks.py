"""Locks of files and folders, and the watch over folders that are deleted or renamed."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from selfsight.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

LOCK = ".lock"  # a file in a folder that one process writes; that process has locked it
# Neither follow a link nor wait for the writer of a pipe; 0 on systems that lack the flag.
_SAFELY = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_BINARY", "O_NOFOLLOW"))
_watched: list[tuple[str, int]] = []  # locks that are open: path, descriptor


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK, wait: bool = False) -> Iterator[None]:
    """Lock a folder for this process; the lock ends with the process at the latest. Meanwhile
    nothing is written below its path if it is deleted or renamed, see `check_folder`.

    There is no lock on Windows.
    Args:
        name: of the file that is locked; locks with different names are independent.
        wait: for another process that has locked the folder, instead of raising.
    Raises: UserError if another process has locked the folder, or if the lock is no plain file.
    """
    path = folder / name
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_lock_file(path))
        while fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                raise UserError(
                    f"'{folder}': another process is writing this run; wait for it or stop it"
                ) from None
            if _is_the_file(file, path):
                break
            file = stack.enter_context(_lock_file(path))  # the one before removed its file
        stack.enter_context(_watching(path, file.fileno()))
        yield


def _lock_file(path: Path) -> BinaryIO:
    """Open a lock without changing its content: a link could lead to any file."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | _SAFELY, 0o666)
    except OSError as error:
        reason = "it is a link" if path.is_symlink() else error.strerror
        raise UserError(f"'{path}': cannot be locked: {reason}; remove it") from None
    file = os.fdopen(handle, "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise UserError(f"'{path}': cannot be locked: it is no plain file; remove it")
    return file


def _is_the_file(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[None]:
    """As `locked`, for a process beside the one that has locked the folder: it takes no lock. No
    effect where this machine does not see the folder."""
    with contextlib.ExitStack() as stack:
        if (folder / LOCK).is_file():
            file = stack.enter_context((folder / LOCK).open())
            stack.enter_context(_watching(folder / LOCK, file.fileno()))
        yield


@contextlib.contextmanager
def _watching(lock: Path, descriptor: int) -> Iterator[None]:
    entry = (os.path.abspath(lock), descriptor)
    _watched.append(entry)
    try:
        yield
    finally:
        _watched.remove(entry)


def check_folder(path: Path) -> None:
    """Called before each write to `path`.

    Raises: UserError if a folder above it that this process has locked is not at its path any more.
    """
    for lock, descriptor in _watched:
        folder = os.path.dirname(lock)
        if not os.path.abspath(path).startswith(folder + os.sep):
            continue
        try:
            if os.path.samestat(os.stat(lock), os.fstat(descriptor)):
                continue
        except (FileNotFoundError, NotADirectoryError):
            pass
        raise UserError(
            f"'{folder}': the folder, or {LOCK} in it, was deleted, renamed or replaced while this "
            f"process wrote it; nothing more is written. Rename the folder back, if it still "
            f"exists, and run the same command again: it continues after the last checkpoint"
        )


@contextlib.contextmanager
def appending(path: Path) -> Iterator[TextIO]:
    """The end of a text file that several processes add lines to, one at a time (not on
    Windows)."""
    check_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
