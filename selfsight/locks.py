"""Locks of files and folders, and the watch over folders that are deleted or renamed."""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from selfsight.errors import UserError, described
from selfsight.lease import Lease, held, seen

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

LOCK = ".lock"  # a file in a folder that one process writes; that process has locked it
# Neither follow a link nor wait for the writer of a pipe; 0 on systems that lack the flag.
_SAFELY = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_BINARY", "O_NOFOLLOW"))
_watched: list[tuple[str, int, Lease | None]] = []  # open locks: path, descriptor, lease
_HELD = (errno.EWOULDBLOCK, errno.EACCES)  # another process has the lock
# The file system has no locks, or its server of locks does not answer.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
# Mounts whose locks hold on one machine, while other machines may write the same folder.
_OF_ONE_MACHINE = {"localflock", "local_lock=flock", "local_lock=all", "nolock", "nobrl"}
MOUNTS = "/proc/self/mountinfo"
_SHARED_MOUNTS = re.compile(r"fuse(\..*)?|9p|virtiofs|beegfs")


@contextlib.contextmanager
def locked(folder: Path, name: str = LOCK, wait: bool = False) -> Iterator[None]:
    """Lock a folder for this process; the lock ends with the process at the latest. Meanwhile
    nothing is written below its path if it is deleted or renamed, see `check_folder`.

    There is no lock on Windows. Where the file system has no locks, or none that other machines
    see, a lease takes their place (see selfsight/lease.py).
    Args:
        name: of the file that is locked; locks with different names are independent.
        wait: for another process that has locked the folder, instead of raising.
    Raises: UserError if another process has locked the folder, or if the lock is no plain file.
    """
    path = folder / name
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_lock_file(path))
        is_locked = fcntl is None or _flock(file, folder, wait)
        while fcntl and is_locked and not _is_the_file(file, path):
            file = stack.enter_context(_lock_file(path))  # the one before removed its file
            is_locked = _flock(file, folder, wait)
        lease = None
        if fcntl and (not is_locked or _is_of_one_machine(folder)):
            lease = stack.enter_context(held(_lease_of(path), wait))
        stack.enter_context(_watching(path, file.fileno(), lease))
        yield


def _flock(file: BinaryIO, folder: Path, wait: bool) -> bool:
    """Lock an open file; returns False where the file system has no locks. Raises: UserError."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        if error.errno in _HELD:
            raise UserError(
                f"'{folder}': another process is writing this run; wait for it or stop it"
            ) from None
        raise UserError(f"'{folder}': cannot be locked: {described(error)}") from None
    return True


def _lease_of(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.lease")


def _is_of_one_machine(folder: Path) -> bool:
    """Whether other machines may write the folder and do not see this machine's locks, by what is
    mounted there (Linux)."""
    try:
        device = os.stat(folder).st_dev
        lines = Path(MOUNTS).read_text(errors="replace").splitlines()
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    for words in (line.split(" ") for line in lines):  # the source of a mount may be empty
        if words[2] == number:
            kind, _, options = words[words.index("-") + 1 :][:3]
            given = {*options.split(","), *words[5].split(",")}
            return _SHARED_MOUNTS.fullmatch(kind) is not None or bool(given & _OF_ONE_MACHINE)
    return False


def _lock_file(path: Path) -> BinaryIO:
    """Open a lock without changing its content: a link could lead to any file."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | _SAFELY, 0o666)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise  # the disk is the reason, and not what is there
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
            lease = seen(_lease_of(folder / LOCK))
            stack.enter_context(_watching(folder / LOCK, file.fileno(), lease))
        yield


@contextlib.contextmanager
def _watching(lock: Path, descriptor: int, lease: Lease | None) -> Iterator[None]:
    entry = (os.path.abspath(lock), descriptor, lease)
    _watched.append(entry)
    try:
        yield
    finally:
        _watched.remove(entry)


def check_folder(path: Path) -> None:
    """Called before each write to `path`.

    Raises: UserError if a folder above it that this process has locked is not at its path any more,
        or if another process has taken it over.
    """
    for lock, descriptor, lease in _above(path):
        if lease is not None:
            lease.check()
        try:
            if os.path.samestat(os.stat(lock), os.fstat(descriptor)):
                continue
        except (FileNotFoundError, NotADirectoryError):
            pass
        raise UserError(
            f"'{os.path.dirname(lock)}': the folder, or {LOCK} in it, was deleted, renamed or "
            f"replaced while this process wrote it; nothing more is written. Rename the folder "
            f"back, if it still exists, and run the same command again: it continues after the "
            f"last checkpoint"
        )


def where_to_begin(path: Path) -> Path:
    """The folder for a file on its way to `path`: with a lease that of the lease, from where it
    cannot be renamed to `path` once another process has taken over."""
    leases = [(len(lock), lease.inside) for lock, _, lease in _above(path) if lease is not None]
    return max(leases)[1] if leases else path.parent


def _above(path: Path) -> list[tuple[str, int, Lease | None]]:
    """The locks of folders that hold this path."""
    place = os.path.abspath(path)
    return [entry for entry in _watched if place.startswith(os.path.dirname(entry[0]) + os.sep)]


@contextlib.contextmanager
def appending(path: Path) -> Iterator[TextIO]:
    """The end of a text file that several processes add lines to, one at a time (not on Windows,
    nor where the file system has no locks)."""
    check_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="surrogateescape") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
        yield file
