"""The files of a pack: each stays open, and many threads read from it."""

import os
from pathlib import Path

import numpy as np

from selfsight.files import open_plain, read_at


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
        self._descriptor = self._file.fileno()
        found = os.fstat(self._descriptor).st_size
        if size is not None and found != size:
            raise ValueError(f"{path.name} is {found:,} bytes long instead of {size:,}")

    def __reduce__(self) -> tuple:
        """Another process opens the file by itself."""
        return type(self), self._made_of

    def read(self, size: int, place: int) -> bytes:
        """The bytes from there on; fewer at the end of the file."""
        return read_at(self._descriptor, size, place)


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
