"""Many strings in little memory, and saved indices of files."""

import contextlib
import itertools
import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.files import open_plain, write_atomically

BATCH = 2**14  # strings held as Python objects at a time


class PackedStrings:
    """A list of N file names or paths: all their bytes in one string, and N + 1 offsets.

    A million file names of 20 bytes take 24 MB; as a list of `str` they take 77 MB. Bytes that are
    not UTF-8 are kept, as in `os.fsdecode`.

    Attributes:
        blob: the bytes of all strings, joined; or a view of them in a file that is mapped.
        offsets: (N + 1,) uint32, or int64 from 4 GiB on; string i is blob[offsets[i]:offsets[i+1]].
    """

    def __init__(self, blob: bytes | memoryview, offsets: np.ndarray) -> None:
        self.blob, self.offsets = blob, offsets

    def __reduce_ex__(self, protocol: int) -> tuple:
        """Pickle may then keep the bytes out of its stream, as those of arrays (PEP 574)."""
        blob = pickle.PickleBuffer(self.blob) if protocol >= 5 else bytes(self.blob)
        return PackedStrings, (blob, self.offsets)

    @classmethod
    def of(cls, strings: Iterable[bytes]) -> "PackedStrings":
        strings = iter(strings)
        blobs, lengths = [], []
        while batch := list(itertools.islice(strings, BATCH)):
            blobs.append(b"".join(batch))
            lengths.append(np.fromiter(map(len, batch), np.uint32, len(batch)))
        return cls._concatenated(blobs, lengths)

    @classmethod
    def joined(cls, parts: list["PackedStrings"]) -> "PackedStrings":
        return cls._concatenated([p.blob for p in parts], [np.diff(p.offsets) for p in parts])

    @classmethod
    def _concatenated(cls, blobs: list[bytes], lengths: list[np.ndarray]) -> "PackedStrings":
        blob = b"".join(blobs)
        zero = np.zeros(1, np.uint32 if len(blob) < 2**32 else np.int64)
        offsets = np.concatenate([zero, *lengths], dtype=zero.dtype)
        return cls(blob, offsets.cumsum(dtype=zero.dtype, out=offsets))

    def is_whole(self) -> bool:
        """Whether the offsets cut all bytes into strings."""
        ends = self.offsets
        if ends.ndim != 1 or ends.dtype.kind not in "iu" or not len(ends):
            return False
        return bool(ends[0] == 0 and ends[-1] == len(self.blob) and (ends[1:] >= ends[:-1]).all())

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> str:
        return os.fsdecode(self.raw(i))

    def raw(self, i: int) -> bytes:
        """String i as bytes, as the operating system gave it."""
        return bytes(self.blob[self.offsets[i] : self.offsets[i + 1]])

    def part(self, start: int, stop: int) -> list[bytes]:
        """Strings start to stop - 1 as bytes: 0.1 microseconds each, where `raw` takes a whole."""
        ends = self.offsets[start : stop + 1].tolist()
        blob = bytes(self.blob[ends[0] : ends[-1]])
        return [blob[a - ends[0] : b - ends[0]] for a, b in itertools.pairwise(ends)]


def save_index(file: Path, index: Any) -> None:
    """Write a named tuple of arrays and PackedStrings for `load_index`. A failure is ignored: the
    index is then made again."""
    arrays = {}
    for key, value in index._asdict().items():
        if isinstance(value, PackedStrings):
            arrays[f"{key}_offsets"] = value.offsets
            value = np.frombuffer(value.blob, np.uint8)
        arrays[key] = value

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(stream, **arrays)

    with contextlib.suppress(OSError):  # a full disk, a read-only folder: it is made again
        write_atomically(file, write)


def load_index(file: Path, kind: type) -> Any | None:
    """The index that `save_index` has written, of type `kind`; None if missing or damaged.

    The format .npz holds a checksum of each array, which NumPy compares.
    """
    try:
        with open_plain(file) as stream, np.load(stream, allow_pickle=False) as saved:
            values = {key: saved[key] for key in kind._fields}
            for key in values:
                if f"{key}_offsets" in saved:
                    values[key] = PackedStrings(values[key].tobytes(), saved[f"{key}_offsets"])
                    if not values[key].is_whole():
                        return None
            return kind(**values)
    # On damaged files NumPy raises more kinds of exceptions than its documentation lists.
    except Exception:
        return None
