"""Write files so that after a crash either the old or the new content is complete, and read them
again so that a damaged one is an error, never another value.

What is written here may be torn, altered, or replaced by a folder or a pipe before it is read.
"""

import contextlib
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from selfsight.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

CHECKSUM = "checksum"  # the key of a JSON object that holds the hash of all others
LARGEST = 2**30  # bytes of a text file that is read whole
LOCK = ".lock"
# Neither follow a link nor wait for the writer of a pipe; 0 on systems that lack the flag.
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = _AT_ONCE | getattr(os, "O_NOFOLLOW", 0)


class Damaged(UserError):
    """A file that an earlier command wrote is not as it was written.

    Attributes:
        path: of the file; reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"'{path}' is damaged: {reason}; restore it or remove it")
        self.path, self.reason = path, reason


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK, wait: bool = False) -> Iterator[None]:
    """Lock a folder for this process; the lock ends with the process at the latest.

    No effect on Windows.
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
        yield


def _lock_file(path: Path) -> BinaryIO:
    """Open a lock without changing its content: a link could lead to any file."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
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


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, flush that file to disk and rename it.

    The file gets the permissions of a new file, even if a library would set others (0600). A folder
    that has its name is renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        set_aside(path)
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
    """As UTF-8; bytes of file names that are not, a surrogate each, are written as they were."""
    how = {"encoding": "utf-8", "errors": "surrogateescape"}
    write_atomically(path, lambda p: p.write_text(text, **how))


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
    names = [f"{path.name}.damaged", *(f"{path.name}.{n}.damaged" for n in range(1, 1000))]
    aside = next(p for p in map(path.with_name, names) if not os.path.lexists(p))
    os.replace(path, aside)
    return aside


@contextlib.contextmanager
def appending(path: Path) -> Iterator[TextIO]:
    """The end of a text file that several processes add lines to, one at a time (not on
    Windows)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
