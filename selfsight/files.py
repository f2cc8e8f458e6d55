"""Write files so that after a crash either the old or the new content is complete, and read them
again so that a damaged one is an error, never another value.

What is written here may be torn, altered, or replaced by a folder or a pipe before it is read.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from selfsight.errors import UserError, room
from selfsight.locks import check_folder, where_to_begin

CHECKSUM = "checksum"  # the key of a JSON object that holds the hash of all others
LARGEST = 2**30  # bytes of a text file that is read whole
_FULL = {errno.ENOSPC, errno.EDQUOT}  # no room for more bytes on the disk, or for this user
# Do not wait for the writer of a pipe; 0 on systems that lack the flag.
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class Damaged(UserError):
    """A file that an earlier command wrote is not as it was written.

    Attributes:
        path: of the file; reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"'{path}' is damaged: {reason}; restore it or remove it")
        self.path, self.reason = path, reason


@contextlib.contextmanager
def naming(path: Path, needed: int | None = None, temporary: Path | None = None) -> Iterator[None]:
    """Errors of the disk name this file, as those of a full disk do not by themselves, and those of
    a full disk say how many bytes are free.

    Args:
        needed: the bytes of the file, if they are known.
        temporary: what is written in its place at first: an error does not name it.
    Raises: OSError; UserError, see `check_folder`, if that is why a file is not there.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            check_folder(path)
        ours = (None, None if temporary is None else str(temporary))
        if error.filename in ours and error.errno is not None:
            error.filename = str(path)
        if error.errno in _FULL and not error.strerror.endswith(")"):
            error.strerror = f"{error.strerror} ({room(path, needed, error.errno == errno.EDQUOT)})"
        raise


def write_atomically(path: Path, write: Callable[[Path], None], needed: int | None = None) -> None:
    """Call `write` with a temporary path, flush that file to disk and rename it to `path`.

    The file gets the permissions of a new file, even if a library would set others (0600). A folder
    that has its name is renamed.
    Args:
        needed: the bytes of the file, if they are known, for the message of a full disk.
    Raises: OSError that names the path if the disk is full; no temporary file is left.
    UserError, see `check_folder`.
    """
    check_folder(path)
    temporary = temporary_of(path)
    with naming(path, needed, temporary), removed_at_the_end(temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            set_aside(path)
        with temporary.open("wb") as file:
            mode = os.fstat(file.fileno()).st_mode
        write(temporary)
        os.chmod(temporary, mode)
        rename_durably(temporary, path)


def temporary_of(path: Path) -> Path:
    """A name for a file on its way to `path`. No other process has it: two machines or containers
    may have equal process numbers, but not equal random numbers."""
    return where_to_begin(path) / f".{path.name}.{os.getpid()}-{secrets.token_hex(8)}.tmp"


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
    """Flush a complete file to disk, rename it, and flush its folder. Raises: OSError; UserError,
    see `check_folder`."""
    _flush(source)
    check_folder(target)
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


def state_of(file: str | Path | int) -> tuple[int, int]:
    """Size in bytes and modification time in nanoseconds, of a path or of an open file's number: if
    they differ, it is another file."""
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns


def write_text(path: Path, text: str) -> None:
    """As UTF-8; bytes of file names that are not, a surrogate each, are written as they were."""
    how = {"encoding": "utf-8", "errors": "surrogateescape"}
    write_atomically(path, lambda p: p.write_text(text, **how), len(text.encode(*how.values())))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def open_plain(path: Path) -> BinaryIO:
    """Open a file to read its bytes. Raises: Damaged for a folder, a pipe or a device; OSError."""
    try:
        handle = os.open(path, os.O_RDONLY | _AT_ONCE)
    except IsADirectoryError:
        raise Damaged(path, "it is a folder") from None
    file = os.fdopen(handle, "rb") if stat.S_ISREG(os.fstat(handle).st_mode) else None
    if file is None:
        os.close(handle)
        raise Damaged(path, "it is no plain file")
    return file


def read_text(path: Path, most: int = LARGEST, errors: str = "strict") -> str:
    """The text of a UTF-8 file of at most `most` bytes. Raises: Damaged; OSError.

    Args:
        errors: as of `bytes.decode`; "surrogateescape" for names of files, which may be any bytes.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise Damaged(path, f"it is {size:,} bytes long, and at most {most:,} are expected")
        data = file.read(most)
    try:
        return data.decode(errors=errors)
    except UnicodeDecodeError as error:
        raise Damaged(path, f"byte {error.start:,} is no UTF-8 text") from None


def read_json(path: Path, kind: type = dict) -> Any:
    """The value in a JSON file, without its checksum if it has one.

    Args:
        kind: dict or list, which the value must be.
    Raises: Damaged; OSError if there is no such file, or if the machine cannot read it.
    """
    value = parse_json(read_text(path), path, kind)
    return unsealed(value, path) if kind is dict else value


def read_or_set_aside(
    path: Path, fits: Callable[[dict[str, Any]], bool], say: Callable[[str], None]
) -> dict[str, Any] | None:
    """The JSON object that an earlier command wrote and that can be made again.

    Args:
        fits: whether the object has what its reader needs, each of the right type.
        say: takes a line about a damaged file, which is renamed.
    Returns: None if there is no such file, or a damaged one.
    """
    if not os.path.lexists(path):
        return None
    try:
        value = read_json(path)
        if fits(value):
            return value
        reason = "it lacks values, or they are of another type"
    except (Damaged, FileNotFoundError) as error:  # the latter: a link to nothing
        reason = error.reason if isinstance(error, Damaged) else "it is a link to nothing"
    say(f"'{path}' is damaged: {reason}; kept as '{set_aside(path).name}', it is made again")
    return None


def are_numbers(values: Any) -> bool:
    """Whether this is an object of JSON whose values are finite numbers, or null."""
    if not isinstance(values, dict):
        return False
    return all(v is None or (is_number(v) and math.isfinite(v)) for v in values.values())


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def parse_json(text: str, path: Path, kind: type = dict) -> Any:
    """The value of a JSON text that was found in `path`. Raises: Damaged."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(path, f"not valid JSON: {error}") from None
    if not isinstance(value, kind):
        found = type(value).__name__
        raise Damaged(path, f"it holds a JSON {found} instead of a {kind.__name__}")
    return value


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """The object with a checksum of its content, for `write_json` or json.dumps."""
    return {**value, CHECKSUM: _checksum(value)}


def unsealed(value: dict[str, Any], path: Path) -> dict[str, Any]:
    """The object that was given to `sealed`. One without a checksum is taken as it is, since
    earlier versions wrote none. Raises: Damaged."""
    content = {key: item for key, item in value.items() if key != CHECKSUM}
    if CHECKSUM in value and value[CHECKSUM] != _checksum(content):
        raise Damaged(path, "its content does not agree with its checksum")
    return content


def _checksum(value: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(value))  # as it is read: with lists for tuples, text for keys
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def seal(path: Path) -> None:
    """Write the checksum of a complete file beside it, in the form of the program sha256sum."""
    write_text(_seal_of(path), f"{file_hash(path)}  {path.name}\n")


def is_intact(path: Path) -> bool:
    """Whether a file is as it was when `seal` was called; False without a seal."""
    try:
        return read_text(_seal_of(path), 4096) == f"{file_hash(path)}  {path.name}\n"
    except (OSError, Damaged):
        return False


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def file_hash(path: Path) -> str:
    """SHA-256 of the bytes of a file. Raises: Damaged if it is no plain file; OSError."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path) -> Path:
    """Rename what is damaged, so that a new file can take its place: returns the new path.

    An earlier file set aside under the name NAME.damaged stays; a number makes another name.
    """
    check_folder(path)
    names = [f"{path.name}.damaged", *(f"{path.name}.{n}.damaged" for n in range(1, 1000))]
    aside = next(p for p in map(path.with_name, names) if not os.path.lexists(p))
    os.replace(path, aside)
    return aside
