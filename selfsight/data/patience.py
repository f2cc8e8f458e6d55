"""An error of the machine is no broken image: reads are tried again until the machine is back."""

import errno
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from selfsight.data.config import DataConfig, several
from selfsight.data.source import TEST_NAMES, TRAIN_NAMES, Unreachable
from selfsight.errors import UserError, described

T = TypeVar("T")

# Errors of a disk, a network, or of what the process may use: another time the same read succeeds.
_NAMES = (
    *("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EMFILE", "ENFILE", "ENOMEM", "ENOBUFS", "EAGAIN"),
    *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ECONNRESET"),
    *("ECONNABORTED", "ECONNREFUSED", "EREMOTEIO", "ENOLINK", "ECOMM", "ENODEV", "ENXIO"),
    *("ESHUTDOWN", "EBUSY", "ENOMEDIUM", "EINTR", "EPROTO", "EDEADLK", "ENOLCK"),
)
MACHINE = {getattr(errno, name) for name in _NAMES if hasattr(errno, name)}
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP)
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5  # seconds between two tries


class Patience:
    """Waits while the machine cannot read; threads share one.

    Args:
        seconds: how long, before the error ends the run.
        roots: the folders that hold the images; those that exist now must stay the same folders.
    """

    def __init__(self, seconds: float = 60.0, roots: Iterable[str] = ()) -> None:
        self._seconds = seconds
        folders = {place for root in roots for place in _places(Path(root).expanduser())}
        self._folders = {folder: state for folder in folders if (state := _identity(folder))}
        self._since: float | None = None  # when the first read failed; no other succeeded since

    @classmethod
    def of(cls, config: DataConfig) -> "Patience":
        """The patience of a source that is open now."""
        keys = (config.path, config.test_path, config.image_dir, config.test_image_dir)
        return cls(config.patience, [path for key in keys for path in several(key)])

    def wait_for(self, work: Callable[[], T], name: str) -> T:
        """What `work` returns; it is called again after an error of the machine.

        Args:
            name: of the image that it reads.
        Raises: UserError that names the folder and the error if it lasts too long; OSError of the
            image alone, as of a file that is not in its folder any more.
        """
        began, pause = None, FIRST_PAUSE
        while True:
            try:
                result = work()
            except (OSError, MemoryError) as error:
                reason = self._reason(error, name)
                if reason is None:
                    raise
                now = time.monotonic()
                began = now if began is None else began
                self._since = now if self._since is None else self._since
                if now - min(began, self._since) >= self._seconds:
                    raise UserError(self._ended(reason)) from None
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if self._since is not None:
                self._since = None
            return result

    def _reason(self, error: OSError | MemoryError, name: str) -> str | None:
        """The error of the machine in a line; None if the image itself is at fault."""
        if isinstance(error, MemoryError):
            return f"not enough memory to read or decode {name}"
        if isinstance(error, Unreachable):
            return described(error)
        if error.errno in MACHINE:
            where = name if error.filename is None else os.fsdecode(error.filename)
            return f"'{where}': {error.strerror}"
        if error.errno in ABSENT and error.filename is not None:
            gone = self._lost_folder(os.path.dirname(os.path.abspath(os.fsdecode(error.filename))))
            return gone and f"'{gone}': the folder is gone, or is another one than at the start"
        return None

    def _lost_folder(self, parent: str) -> str | None:
        """A folder that holds the images and is not there any more; None if all are there."""
        for folder, state in self._folders.items():
            if _identity(folder) != state:
                return str(folder)
        there = os.path.isdir(parent) and os.access(parent, os.X_OK)
        return None if there else parent

    def _ended(self, reason: str) -> str:
        return (
            f"{reason}. Images could not be read for data.patience={self._seconds:g} seconds; no "
            f"image was noted as broken. When the machine can read again, the same command "
            f"continues; a higher data.patience waits longer"
        )


def _places(root: Path) -> list[Path]:
    """The folder, that of a file, and the folders of its splits: each may be a disk of its own."""
    folder = root if root.is_dir() else root.parent
    return [folder, *(folder / split for split in (*TRAIN_NAMES, *TEST_NAMES))]


def _identity(folder: Path) -> tuple[int, int] | None:
    """Device and number of a folder; None if there is none."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino
