"""Images appended to a file one by one, so that whatever ends the process leaves whole ones."""

import io
import os
import time
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selfsight.data.source import content_hash

# Of each image of the source: where it ends in the file of images (a broken one takes no room
# there), the hash of what is stored, the hash of what that was made from; a checksum of these.
FIELDS = [("end", "<u8"), ("stored", "u1", 16), ("origin", "u1", 16), ("whole", "?")]
RECORD = np.dtype([*FIELDS, ("check", "<u4")])
FLUSH = 2.0  # seconds of work that an end without warning may cost


class Made(NamedTuple):
    """An image as it is stored, its hash, and the hash of what it was made from."""

    data: bytes
    stored: bytes
    origin: bytes


BROKEN = Made(b"", bytes(16), bytes(16))


class Journal:
    """Two files: the images, and a record for each that is written when its image is on the disk.

    Opening them again cuts both back to the last image that is whole.

    Args:
        header: what the file of images begins with.
    Attributes:
        count: of records: the place in the source of the image that comes next.
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
        """Leave what is whole; returns the number of records, and where their images end."""
        self._records.seek(0)
        found = self._records.read()
        table = np.frombuffer(found[: len(found) // RECORD.itemsize * RECORD.itemsize], RECORD)
        ends = [start, *table["end"].tolist()]
        count = len(table)
        while count and not self._is_whole(table[count - 1], ends[count - 1], ends[count]):
            count -= 1
        self._records.truncate(count * RECORD.itemsize)
        self._images.truncate(ends[count])
        return count, ends[count]

    def _is_whole(self, record: np.void, start: int, end: int) -> bool:
        """Whether the image is as its record says: a power cut may lose parts of either."""
        if record["check"] != zlib.crc32(record.tobytes()[:-4]):
            return False
        if not record["whole"]:
            return start == end
        self._images.seek(start)
        data = self._images.read(end - start) if end > start else b""
        return content_hash(data) == record["stored"].tobytes()

    def add(self, made: Made) -> None:
        """The next image of the source; BROKEN if it cannot be used."""
        self._images.write(made.data)
        self._end += len(made.data)
        whole = bytes([made is not BROKEN])
        record = self._end.to_bytes(8, "little") + made.stored + made.origin + whole
        self._waiting.append(record + zlib.crc32(record).to_bytes(4, "little"))
        self.count += 1
        if time.monotonic() - self._flushed >= FLUSH:
            self.flush()

    def flush(self) -> None:
        """The images, then the records that say that they are there."""
        # taken first: if an interrupt ends this, the second attempt must not write them twice
        waiting, self._waiting = self._waiting, []
        _to_disk(self._images)
        self._records.write(b"".join(waiting))
        _to_disk(self._records)
        self._flushed = time.monotonic()


def _to_disk(file: io.BufferedRandom) -> None:
    file.flush()
    os.fsync(file.fileno())
