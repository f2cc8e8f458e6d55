"""Append images to a file, so that a killed process leaves complete images."""

import io
import os
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfsight.data.source import content_hash
from selfsight.errors import UserError
from selfsight.files import Damaged, read_json

# For each image of the source: its end in the file of images in bytes (an undecodable image has
# length 0), the content hash of what is stored, that of what it was made from, whether it is good;
# then the CRC-32 of these.
FIELDS = [("end", "<u8"), ("stored", "u1", 16), ("origin", "u1", 16), ("whole", "?")]
RECORD = np.dtype([*FIELDS, ("check", "<u4")])
FLUSH = 2.0  # seconds between writes to disk: the most work that is lost if the process is killed


class Made(NamedTuple):
    """An image as it is stored, its content hash, and that of the image it was made from."""

    data: bytes
    stored: bytes
    origin: bytes


BROKEN = Made(b"", bytes(16), bytes(16))


def begun(work: Path, plan: str, end: str) -> dict[str, Any]:
    """The plan of an unfinished pack, from the file of the plan or that which marks the end."""
    try:
        return read_json(work / (plan if (work / plan).exists() else end))
    except (FileNotFoundError, Damaged):
        raise UserError(f"'{work}': its {plan} is lost or damaged; remove this folder") from None


def is_complete(record: np.void) -> bool:
    """Whether a record is as it was written."""
    return bool(record["check"] == zlib.crc32(record.tobytes()[:-4]))


class Journal:
    """A file of images, and a file of records: a record is written after its image is on disk.

    Opening them again removes what follows the last complete image from both.

    Args:
        header: the first bytes of the file of images.
    Attributes:
        count: the number of records, which is the index of the next image in the source.
    """

    def __init__(self, images: Path, records: Path, header: bytes) -> None:
        self._images, self._records = images.open("a+b"), records.open("a+b")
        self._waiting: list[bytes] = []
        self._flushed = time.monotonic()
        if images.stat().st_size < len(header):
            self._images.truncate(0)
            self._images.write(header)
        self.count, self._end = self._cut_back(len(header))

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        with self._images, self._records:
            self.flush()

    def _cut_back(self, start: int) -> tuple[int, int]:
        """Remove what follows the last complete image; returns the number of records, and where
        the images end in bytes."""
        self._records.seek(0)
        found = self._records.read()
        table = np.frombuffer(found[: len(found) // RECORD.itemsize * RECORD.itemsize], RECORD)
        ends = [start, *table["end"].tolist()]
        count = next((n for n, r in enumerate(table) if not is_complete(r)), len(table))
        falls = np.flatnonzero(np.diff(np.array(ends[: count + 1], np.int64)) < 0)
        count = int(falls[0]) if len(falls) else count
        while count and not self._is_whole(table[count - 1], ends[count - 1], ends[count]):
            count -= 1
        self._records.truncate(count * RECORD.itemsize)
        self._images.truncate(ends[count])
        return count, ends[count]

    def _is_whole(self, record: np.void, start: int, end: int) -> bool:
        """Whether an image matches its record; after a power cut either may be incomplete."""
        if not record["whole"]:
            return start == end
        self._images.seek(start)
        data = self._images.read(end - start) if end > start else b""
        return content_hash(data) == record["stored"].tobytes()

    def add(self, made: Made) -> None:
        """Append the next image of the source; BROKEN for one that cannot be decoded."""
        self._images.write(made.data)
        self._end += len(made.data)
        whole = bytes([made is not BROKEN])
        record = self._end.to_bytes(8, "little") + made.stored + made.origin + whole
        self._waiting.append(record + zlib.crc32(record).to_bytes(4, "little"))
        self.count += 1
        if time.monotonic() - self._flushed >= FLUSH:
            self.flush()

    def flush(self) -> None:
        """Write the images to disk, and then their records."""
        # Taken first: if this is interrupted, the next call must not write the records twice.
        waiting, self._waiting = self._waiting, []
        _to_disk(self._images)
        self._records.write(b"".join(waiting))
        _to_disk(self._records)
        self._flushed = time.monotonic()


def _to_disk(file: io.BufferedRandom) -> None:
    file.flush()
    os.fsync(file.fileno())
