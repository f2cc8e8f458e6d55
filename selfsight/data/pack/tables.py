"""The files of a pack: each stays open, and many threads read from it."""

import contextlib
from pathlib import Path

import numpy as np

from selfsight.files import Damaged, open_plain, read_at, state_of


def ascending(table: "Table") -> np.ndarray:
    """(N + 1,) where names or images begin and end in their file."""
    ends = table.load()
    if ends[0] != 0 or (ends[1:] < ends[:-1]).any():
        raise ValueError(f"{table.name} does not ascend from 0")
    return ends


class File:
    """A file that stays open; many threads read from it.

    Raises: ValueError if its size is wrong.
    """

    def __init__(self, path: Path, size: int | None) -> None:
        self._made_of: tuple = (path, size)
        self.name, self._path, self._file = path.name, path, open_plain(path)
        self._state = found, _ = state_of(self._file.fileno())
        if size is not None and found != size:
            raise ValueError(f"{path.name} is {found:,} bytes long instead of {size:,}")

    def __reduce__(self) -> tuple:
        """Another process opens the file by itself."""
        return type(self), self._made_of

    def read(self, size: int, place: int) -> bytes:
        """The bytes from there on; fewer at the end of the file. Raises: OSError, after which the
        next read may succeed."""
        file = self._file  # stays open while it is read, also if another thread replaces it
        try:
            return read_at(file.fileno(), size, place)
        except OSError as error:
            self._open_again()
            raise OSError(error.errno, error.strerror, str(self._path)) from None

    def _open_again(self) -> None:
        """After a disk or server was away, what was open before cannot be read any more."""
        with contextlib.suppress(OSError, Damaged):  # it is away still
            again = open_plain(self._path)
            if state_of(again.fileno()) == self._state:  # else it is another file
                self._file = again


class Table(File):
    """A .npy file.

    Attributes:
        start: where its numbers begin, in bytes.
    Raises: ValueError if it holds other numbers than these, or not all of them.
    """

    def __init__(self, path: Path, kind: type, shape: tuple[int, ...]) -> None:
        super().__init__(path, None)
        self._made_of = path, kind, shape
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.dtype != kind or array.shape != shape or not array.flags.c_contiguous:
            found = f"{array.dtype} {array.shape}"
            raise ValueError(f"{path.name} contains {found} instead of {np.dtype(kind)} {shape}")
        self.start = array.offset

    def load(self) -> np.ndarray:
        """All its numbers, in memory."""
        try:
            array = np.load(self._path, allow_pickle=False)
        except (EOFError, ValueError) as error:
            raise ValueError(f"{self.name}: {error}") from None
        array.flags.writeable = False
        return array
