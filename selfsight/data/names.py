"""The names of all images of a source, many at a time: it takes a tenth of the time that asking for
each name does."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

# What the names of a block begin with, and the rest of each, as the bytes of `os.fsencode`.
NameBlock = tuple[bytes, list[bytes]]
BLOCK = 2**16  # names of one
SPARSE = 5  # of so many images one: asking for its name is faster than all names are


def name_blocks(source: Any) -> Iterator[NameBlock]:
    """The names of all images of a source in order."""
    given = getattr(source, "name_blocks", None)
    return _one_by_one(source) if given is None else given()


def some_of(part: Any, whole: Any, rows: np.ndarray) -> Iterator[NameBlock]:
    """The names of a part of a source: of the images with these indices."""
    if SPARSE * len(rows) < len(whole) or (rows[1:] <= rows[:-1]).any():
        yield from _one_by_one(part)
        return
    start = 0
    for prefix, names in name_blocks(whole):
        first, last = np.searchsorted(rows, (start, start + len(names)))
        yield prefix, [names[i] for i in (rows[first:last] - start).tolist()]
        start += len(names)


def _one_by_one(source: Any) -> Iterator[NameBlock]:
    for rows in blocks(len(source)):
        yield b"", [os.fsencode(source.name(i)) for i in rows]


def numbered(prefix: str, count: int) -> Iterator[NameBlock]:
    """The names "PREFIX 0", "PREFIX 1" ..."""
    for rows in blocks(count):
        yield os.fsencode(f"{prefix} "), [b"%d" % i for i in rows]


def blocks_in(ends: np.ndarray) -> Iterator[tuple[int, range]]:
    """The number of a folder or shard, and the indices of its images, up to BLOCK at a time.

    Args:
        ends: the index of each one's last image + 1.
    """
    start = 0
    for number, end in enumerate(ends.tolist()):
        for rows in blocks(end, start):
            yield number, rows
        start = end


def blocks(stop: int, start: int = 0) -> Iterator[range]:
    """The numbers from start to stop - 1, up to BLOCK at a time."""
    return (range(i, min(i + BLOCK, stop)) for i in range(start, stop, BLOCK))
