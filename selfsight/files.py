"""Write files so that after a crash either the old or the new content is complete."""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from selfsight.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

LOCK = ".lock"  # a file in a folder that one process writes; that process has locked it
_watched: list[tuple[str, int]] = []  # locks that are open: path, descriptor


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; the lock ends with the process at the latest. Meanwhile
    nothing is written below its path if it is deleted or renamed, see `check_folder`.

    There is no lock on Windows.
    Raises: UserError if another process has locked the folder.
    """
    with (folder / LOCK).open("w") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"'{folder}': another process is writing this run; wait for it or stop it"
                ) from None
        with _watching(folder, file.fileno()):
            yield


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[None]:
    """As `locked`, for a process beside the one that has locked the folder: it takes no lock. No
    effect where this machine does not see the folder."""
    with contextlib.ExitStack() as stack:
        if (folder / LOCK).is_file():
            file = stack.enter_context((folder / LOCK).open())
            stack.enter_context(_watching(folder, file.fileno()))
        yield


@contextlib.contextmanager
def _watching(folder: Path, descriptor: int) -> Iterator[None]:
    entry = (os.path.abspath(folder / LOCK), descriptor)
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
def naming(path: Path) -> Iterator[None]:
    """Errors of the disk name this file, as those of a full disk do not by themselves."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, flush that file to disk and rename it.

    The file gets the permissions of a new file, even if a library would set others (0600).
    Raises: OSError that names the path if the disk is full; no temporary file is left.
    UserError, see `check_folder`.
    """
    check_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path), removed_at_the_end(temporary):
        with temporary.open("wb") as file:
            mode = os.fstat(file.fileno()).st_mode
        write(temporary)
        os.chmod(temporary, mode)
        rename_durably(temporary, path)


@contextlib.contextmanager
def removed_at_the_end(temporary: Path) -> Iterator[None]:
    """Remove the file at the end, if it is still there; a disk that has become read-only hides no
    earlier error."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def rename_durably(source: Path, target: Path) -> None:
    """Flush a complete file to disk, rename it, and flush its folder."""
    _flush(source)
    os.replace(source, target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    """Windows flushes a file only if it is open for writing, and a folder not at all."""
    is_folder = path.is_dir()
    if is_folder and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_turn = threading.Lock()


def _read_at(descriptor: int, size: int, place: int) -> bytes:
    """`size` bytes of a file from `place` on; fewer at its end. Threads take turns."""
    with _turn:
        os.lseek(descriptor, place, os.SEEK_SET)
        return os.read(descriptor, size)


read_at = getattr(os, "pread", _read_at)  # Windows has no pread


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


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
