"""Write files so that after a crash either the old or the new content is complete."""

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from selfsight.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK, wait: bool = False) -> Iterator[None]:
    """Lock a folder for this process; the lock ends with the process at the latest.

    No effect on Windows.
    Args:
        name: of the file that is locked; locks with different names are independent.
        wait: for another process that has locked the folder, instead of raising.
    Raises: UserError if another process has locked the folder.
    """
    path = folder / name
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("a"))
        while fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                raise UserError(
                    f"'{folder}': another process is writing this run; wait for it or stop it"
                ) from None
            if _is_the_file(file, path):
                break
            file = stack.enter_context(path.open("a"))  # the process before removed its file
        yield


def _is_the_file(file: TextIO, path: Path) -> bool:
    """Whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, flush that file to disk and rename it.

    The file gets the permissions of a new file, even if a library would set others (0600).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes in two containers may have one number: the random part tells their files apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            mode = os.fstat(file.fileno()).st_mode
        write(temporary)
        os.chmod(temporary, mode)
        rename_durably(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def rename_durably(source: Path, target: Path) -> None:
    """Flush a complete file to disk, rename it, and flush its folder."""
    _flush(source)
    os.replace(source, target)
    if os.name == "posix":
        _flush(target.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


@contextlib.contextmanager
def appending(path: Path) -> Iterator[TextIO]:
    """The end of a text file that several processes add lines to, one at a time (not on
    Windows)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
