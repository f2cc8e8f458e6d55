"""What a source of images is, and a part of one."""

import hashlib
import os
import time
from pathlib import Path
from typing import Protocol

import numpy as np

from selfsight.errors import UserError

GRANULARITY = 2 * 10**9  # nanoseconds, of the times that the coarsest file systems keep
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")  # the first that exists is taken


class Source(Protocol):
    """What every source offers; `read` is called by many threads at a time.

    Attributes:
        classes: their names, or None of images without labels.
        labels: (N,) int64, or None where `classes` is None.
    """

    classes: list[str] | None
    labels: np.ndarray | None

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes | np.ndarray:
        """Encoded bytes, or uint8 pixels (H, W, 3) that must not be written to.

        Raises: OSError or BadImage if the image is not there or not readable.
        """

    def name(self, i: int) -> str:
        """What an error message calls the image: its path, if it has one."""

    # A source of files also has files(), their paths: see `stamp`.


class BadImage(UserError):
    """One image cannot be used; the message names it and says why.

    Attributes:
        name, reason: the two parts of the message.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"Cannot decode {name}: {reason}")
        self.name, self.reason = name, reason


class ConcatSource:
    """Several sources, one after the other, with the classes of them all."""

    def __init__(self, sources: list[Source]) -> None:
        """Raises: UserError if some have labels and others have none."""
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])
        self.classes, self.labels = None, None
        if any(source.classes is not None for source in sources):
            self._join_labels()
        known = [origins(source) for source in sources]
        self.origins = None
        if any(rows is not None for rows in known):
            unknown = [np.zeros((len(source), 16), np.uint8) for source in sources]
            pairs = zip(known, unknown, strict=True)
            self.origins = np.concatenate([b if a is None else a for a, b in pairs])

    def _join_labels(self) -> None:
        if any(source.classes is None for source in self._sources):
            raise UserError(
                "data.path: some of these sources have labels and others have none; "
                "data.labels=false reads none"
            )
        self.classes = max((source.classes for source in self._sources), key=len)
        every = {name for source in self._sources for name in source.classes}
        if not every <= set(self.classes):
            self.classes = sorted(every)
        for source in self._sources:
            align(source, self.classes)
        self.labels = np.concatenate([source.labels for source in self._sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, i: int) -> bytes | np.ndarray:
        source, i = self._place(i)
        return source.read(i)

    def name(self, i: int) -> str:
        source, i = self._place(i)
        return source.name(i)

    def _place(self, i: int) -> tuple[Source, int]:
        n = int(np.searchsorted(self._ends, i, "right"))
        return self._sources[n], i - (int(self._ends[n - 1]) if n else 0)


class Subset:
    """Some images of a source: one side of a split made here."""

    def __init__(self, source: Source, rows: np.ndarray) -> None:
        self._source, self._rows = source, rows
        self.classes = source.classes
        self.labels = None if source.labels is None else source.labels[rows]
        known = origins(source)
        self.origins = None if known is None else known[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> bytes | np.ndarray:
        return self._source.read(int(self._rows[i]))

    def name(self, i: int) -> str:
        return self._source.name(int(self._rows[i]))


def first_line(error: Exception | str) -> str:
    """Of what a library says, for a message of one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def content_hash(data: bytes | np.ndarray) -> bytes:
    """16 bytes that name what `read` returned: the file's bytes, or the pixels and their shape."""
    if isinstance(data, bytes):
        return hashlib.blake2b(data, digest_size=16).digest()
    pixels = hashlib.blake2b(np.ascontiguousarray(data), digest_size=16)
    pixels.update(str(data.shape).encode())
    return pixels.digest()


def origins(source: Source) -> np.ndarray | None:
    """(N, 16) uint8, the content hashes of the images that a source's images were made from, 0 of
    those that are as they were; None if all are."""
    return getattr(source, "origins", None)


def made_from(source: Source, contents: np.ndarray) -> np.ndarray:
    """(N, 16) the same of all images, given the content hashes of what the source holds."""
    known = origins(source)
    return contents if known is None else np.where(known.any(1)[:, None], known, contents)


def stamp(source: Source) -> str | None:
    """Names what a source holds by the paths, sizes and times of its files, without reading them.

    None if the source has no `files()`, or if one changed so recently that it may change again
    without another time of change.
    """
    if isinstance(source, ConcatSource):
        stamps = [stamp(part) for part in source._sources]
        return None if None in stamps else _digest(*stamps)
    if isinstance(source, Subset):
        whole = stamp(source._source)
        return whole and _digest(whole, source._rows.astype("<i8").tobytes())
    if not hasattr(source, "files"):
        return None
    digest, newest = hashlib.sha256(os.getcwdb()), 0
    digest.update(f"{len(source)} {source.name(0)}".encode(errors="surrogateescape"))  # which split
    for path in source.files():
        try:
            status = os.stat(path)
        except OSError:  # reading it says what is wrong
            return None
        digest.update(b"\0%b %d %d" % (os.fsencode(path), status.st_size, status.st_mtime_ns))
        newest = max(newest, status.st_mtime_ns)
    return None if newest > time.time_ns() - GRANULARITY else digest.hexdigest()


def _digest(*parts: str | bytes) -> str:
    encoded = (part.encode() if isinstance(part, str) else part for part in parts)
    return hashlib.sha256(b"\0".join(encoded)).hexdigest()


def align(source: Source, classes: list[str]) -> None:
    """Number a source's labels as another split does, whose classes it shares.

    Splits number their own classes, so one that lacks a class would shift all after it.
    Raises: ValueError if it has a class that the other split has not.
    """
    place = {name: n for n, name in enumerate(classes)}
    unknown = [name for name in source.classes if name not in place]
    if unknown:
        raise ValueError(f"class '{unknown[0]}' is not among the others")
    source.labels = np.array([place[name] for name in source.classes])[source.labels]
    source.classes = classes


def cache_beside(run: str | Path | None) -> Path | None:
    """Where the runs beside this one remember what large folders hold."""
    return None if run is None else Path(run).absolute().parent / ".cache"
