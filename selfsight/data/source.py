"""The interface of image sources, and sources that are made of others."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from selfsight.data.labels import align
from selfsight.data.names import NameBlock, name_blocks, some_of
from selfsight.errors import UserError

# A callback for progress: the present task, the images done, the number of all images.
Watch = Callable[[str, int, int], None]
GRANULARITY = 2 * 10**9  # nanoseconds: the coarsest resolution of file times (FAT)
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation", "dev")  # the first with labels
TEST_NAMES += ("eval", "evaluation", "holdout")


class Decoding(NamedTuple):
    """How image files become pixels.

    Attributes:
        range: (lowest, highest) value of images with more than 8 bits, which become the least and
            the most; None: 0 and the largest that 16 bits allow.
        is_found: the range was found in other images, so that values outside of it are an error.
        max_pixels: of an image; a larger one is refused.
        channels: of an image: 1 (gray), 3 (RGB) or others.
        bits: of a value, 8 or 16.
    """

    range: tuple[float, float] | None = None
    is_found: bool = False
    max_pixels: int = 89_478_485  # Pillow's limit against decompression bombs
    channels: int = 3
    bits: int = 8

    def mark(self) -> str:
        """A text that differs where the pixels of the same files do; empty of usual images."""
        words = [] if self.range is None else [f"{self.range}"]
        words += [f"{self.channels} channels"] if self.channels != 3 else []
        return "".join(f" {word}" for word in [*words, *["16 bits"] * (self.bits == 16)])


class Source(Protocol):
    """The interface of every source; many threads call `read` at the same time.

    Attributes:
        classes: the names of the classes, or None if the images have no labels.
        labels: (N,) int64, or None where `classes` is None.
    """

    classes: list[str] | None
    labels: np.ndarray | None

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes | np.ndarray:
        """Encoded bytes, or pixels (H, W, C) that must not be written to: uint8, or numbers of more
        bits, which `decode` maps to the bits and channels that are asked for.

        Raises: OSError or BadImage if the image does not exist or cannot be read; Unreachable if
        many others cannot be read, either.
        """

    def name(self, i: int) -> str:
        """The image's name in error messages: its path, if it has one."""

    # Optional: files(), the paths of all files that are read (see `stamp`); hashes, (N, 16) uint8,
    # the content hash of each image, if no file is read for it; and what the functions of these
    # names return: name_blocks() (see names.py), origins, notes, decoding, levels.


class BadImage(UserError):
    """One image cannot be used; the message names it and says why.

    Attributes:
        name, reason: the two parts of the message.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"Cannot decode {name}: {reason}")
        self.name, self.reason = name, reason


class WrongChannels(UserError):
    """All images of a source have another number of channels than data.channels.

    Attributes:
        found: the numbers that they may have, the likeliest first.
    """

    def __init__(self, message: str, *found: int) -> None:
        super().__init__(message)
        self.found = found


class ChangedImage(BadImage):
    """The bytes of an image are not those that were stored: damage, whatever data.max_bad allows
    of images that never could be decoded."""


class Unreachable(OSError):
    """A file or folder of many images cannot be read now; the image itself is not at fault."""


class ConcatSource:
    """Several sources as one: their images in sequence, the union of their classes."""

    def __init__(self, sources: list[Source]) -> None:
        """Raises: UserError if some sources have labels and others have none."""
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])
        self.notes = [note for source in sources for note in notes(source)]
        self.levels = levels(sources[0])
        if any(levels(source) != self.levels for source in sources):
            raise UserError(
                "data.path: some of these sources are packs of 16 bits and others are not; give "
                "packs alone, or none of them"
            )
        self.classes = self.labels = None
        if any(source.classes is not None for source in sources):
            self._join_labels()

    def _join_labels(self) -> None:
        if any(source.classes is None for source in self._sources):
            raise UserError(
                "data.path: some of these sources have labels and others have none; give all or "
                "none of them labels, or ignore labels with data.labels=false"
            )
        self.classes = max((source.classes for source in self._sources), key=len)
        every = {name for source in self._sources for name in source.classes}
        if not every <= set(self.classes):
            self.classes = sorted(every, key=int if all(n.isdecimal() for n in every) else None)
        for source in self._sources:
            align(source, self.classes)
        self.labels = np.concatenate([source.labels for source in self._sources])

    @cached_property  # few need it, and it takes 16 bytes an image
    def origins(self) -> np.ndarray | None:
        if all(origins(source) is None for source in self._sources):
            return None
        parts = [made_from(s, np.zeros((len(s), 16), np.uint8)) for s in self._sources]
        return np.concatenate(parts)

    @property
    def hashes(self) -> np.ndarray | None:
        found = [getattr(source, "hashes", None) for source in self._sources]
        return None if any(h is None for h in found) else np.concatenate(found)

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

    def name_blocks(self) -> Iterator[NameBlock]:
        for source in self._sources:
            yield from name_blocks(source)


class Subset:
    """The images of a source with the given indices."""

    def __init__(self, source: Source, rows: np.ndarray) -> None:
        self._source, self._rows = source, rows
        self.classes, self.notes = source.classes, notes(source)
        self.decoding, self.levels = decoding(source), levels(source)
        self.patience = patience(source)
        self.labels = None if source.labels is None else source.labels[rows]

    @cached_property
    def origins(self) -> np.ndarray | None:
        known = origins(self._source)
        return None if known is None else known[self._rows]

    @property
    def hashes(self) -> np.ndarray | None:
        whole = getattr(self._source, "hashes", None)
        return None if whole is None else whole[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> bytes | np.ndarray:
        return self._source.read(int(self._rows[i]))

    def name(self, i: int) -> str:
        return self._source.name(int(self._rows[i]))

    def name_blocks(self) -> Iterator[NameBlock]:
        return some_of(self, self._source, self._rows)


def first_line(error: Exception | str) -> str:
    """The first line of a library's error, for messages of one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def content_hash(data: bytes | np.ndarray) -> bytes:
    """A 16-byte fingerprint of what `read` returned: of bytes, or of pixels and their shape."""
    if isinstance(data, bytes):
        return hashlib.blake2b(data, digest_size=16).digest()
    pixels = hashlib.blake2b(np.ascontiguousarray(data), digest_size=16)
    pixels.update(str(data.shape).encode())
    if data.dtype != np.uint8:
        pixels.update(data.dtype.str.encode())
    return pixels.digest()


def origins(source: Source) -> np.ndarray | None:
    """(N, 16) uint8, the content hash of the image that each image was made from, 0 for an image
    that was not changed; None if the source records none."""
    return getattr(source, "origins", None)


def notes(source: Source) -> list[str]:
    """What a user should know about the images, a line each: files that are left out, folders that
    could be meant otherwise."""
    return getattr(source, "notes", [])


def decoding(source: Source) -> Decoding:
    """How the files of a source are decoded."""
    return getattr(source, "decoding", Decoding())


def patience(source: Source) -> float:
    """Seconds for which a read is tried again, see `Patience`."""
    return getattr(source, "patience", 60.0)


def levels(source: Source) -> tuple[float, float] | None:
    """(lowest, highest) of values that were mapped to all bits when they were stored, as in packs
    of 16 bits: data.range is of other images."""
    return getattr(source, "levels", None)


def made_from(source: Source, contents: np.ndarray) -> np.ndarray:
    """(N, 16) uint8, the content hash of each image before packing.

    Args:
        contents: (N, 16) the content hashes of what the source returns now.
    """
    known = origins(source)
    return contents if known is None else np.where(known.any(1)[:, None], known, contents)


def stamp(source: Source) -> str | None:
    """A fingerprint of the paths, sizes, times and inode numbers of a source's files: the last two
    tell files of one size and time apart that were exchanged.

    No file is read. None if the source has no `files()`, or if a file changed so recently that
    another change would leave its modification time as it is.
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
        except OSError:  # reading the file will raise a clear error
            return None
        times = status.st_mtime_ns, status.st_ctime_ns
        state = b"%d %d %d %d" % (status.st_size, *times, status.st_ino)
        digest.update(b"\0%b %b" % (os.fsencode(path), state))
        newest = max(newest, status.st_mtime_ns)
    return None if newest > time.time_ns() - GRANULARITY else digest.hexdigest()


def _digest(*parts: str | bytes) -> str:
    encoded = (part.encode() if isinstance(part, str) else part for part in parts)
    return hashlib.sha256(b"\0".join(encoded)).hexdigest()


def cache_beside(run: str | Path | None) -> Path | None:
    """The folder of saved indices of large sources, shared by all runs beside this one."""
    return None if run is None else Path(run).absolute().parent / ".cache"
