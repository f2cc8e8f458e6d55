"""Features on the way to a table: written a batch at a time, so that work that is stopped goes on.

They lie in a folder beside the table, whose name says of which encoder, images and options they
are. A batch counts once its mark is written, with a checksum of its features; marks are written
after the encoder is proven unchanged. Several processes write to one folder, each its batches.
"""

import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.errors import UserError
from selfsight.files import naming, read_or_set_aside, sealed, write_json
from selfsight.logging.log import say
from selfsight.processes import Stopped

FEATURES, MARKS, STAMP = "features.f32", "marks", "images.json"
BROKEN = "broken-{}.txt"  # the broken images of a split
MARK = np.dtype([("crc", "<u4"), ("complete", "<u4")])
ROWS = 8192  # that are copied at a time
EVERY = 2.0  # seconds between two times that batches are marked; but
SHARE = 100  # times as long as a proof that the encoder is unchanged takes


class Parts:
    """A matrix (N, D) of float32 on disk, in batches of rows. NaN are rows without features.

    Args:
        folder: of the files; it exists.
        spans: the first row of each batch and its end, one batch after the other.
        width: D.
    """

    def __init__(self, folder: Path, spans: np.ndarray, width: int) -> None:
        self.folder, self.spans, self.width = folder, spans, width
        self.rows = int(spans[-1, 1])

    def prepare(self, stamp: str | None) -> None:
        """Make the files, or keep those that an earlier process left.

        Args:
            stamp: a fingerprint of the images' files, or None; of other files nothing is kept.
        """
        file = self.folder / STAMP
        found = read_or_set_aside(file, lambda value: "stamp" in value, say)
        before = None if found is None else found["stamp"]
        if stamp is not None and before is not None and stamp != before:
            say(f"'{self.folder}': the images have changed since; their features are read again")
            for name in (MARKS, FEATURES, BROKEN.format("*")):
                for old in self.folder.glob(name):
                    old.unlink()
        write_json(file, sealed({"stamp": before if stamp is None else stamp}))
        sizes = {FEATURES: 4 * self.rows * self.width, MARKS: MARK.itemsize * len(self.spans)}
        for name, size in sizes.items():
            with naming(self.folder / name), (self.folder / name).open("ab") as out:
                out.truncate(size)

    def missing(self) -> np.ndarray:
        """The numbers of the batches that are not complete."""
        marks = np.fromfile(self.folder / MARKS, MARK)
        whole = marks["complete"] == 1
        with (self.folder / FEATURES).open("rb") as file:
            for number in np.flatnonzero(whole).tolist():
                first, end = self.spans[number].tolist()
                file.seek(4 * first * self.width)
                data = file.read(4 * (end - first) * self.width)
                whole[number] = zlib.crc32(data) == marks["crc"][number]
        return np.flatnonzero(~whole)

    def matrix(self) -> np.ndarray:
        """All features, (N, D), mapped from the file. Call it when no batch is missing."""
        shape = self.rows, self.width
        return np.memmap(self.folder / FEATURES, "<f4", mode="r", shape=shape)

    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows that have features: their numbers, and the features, mapped from a file."""
        matrix = self.matrix()
        there = ~np.isnan(matrix[:, 0])
        rows = np.flatnonzero(there)
        if there.all() or not len(rows):
            return rows, matrix[:0] if not len(rows) else matrix
        file = self.folder / f"kept-{FEATURES}"
        with naming(file, 4 * len(rows) * self.width), file.open("wb") as out:
            for start in range(0, len(rows), ROWS):
                out.write(matrix[rows[start : start + ROWS]].tobytes())
        return rows, np.memmap(file, "<f4", mode="r", shape=(len(rows), self.width))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Writer:
    """What one process writes of the parts.

    Batches are marked by `save` alone, a few seconds after each other, and at the end, also if a
    signal is the end.

    Args:
        prove: raises if the encoder has changed; it may take a while.
    """

    def __init__(self, parts: Parts, prove: Callable[[], None]) -> None:
        self._parts, self._prove, self._waiting = parts, prove, list[tuple[int, int]]()
        self._files = [(parts.folder / n).open("r+b", buffering=0) for n in (FEATURES, MARKS)]
        self._due = time.monotonic() + EVERY

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None or issubclass(kind, Stopped):
                self.save()
        finally:
            for file in self._files:
                file.close()

    def write(self, number: int, features: np.ndarray) -> None:
        """The features of a batch, (b, D) float32."""
        first, end = self._parts.spans[number].tolist()
        if features.shape != (end - first, self._parts.width):
            raise UserError(
                f"The encoder gives features of shape {features.shape} for {end - first} images; "
                f"its width is {self._parts.width}"
            )
        data = features.astype("<f4", copy=False).tobytes()
        self._at(0, 4 * first * self._parts.width, data)
        self._waiting.append((number, zlib.crc32(data)))
        if time.monotonic() >= self._due:
            self.save()

    def save(self) -> None:
        """All batches that were written are complete."""
        began = time.monotonic()
        self._prove()
        for number, crc in self._waiting:
            self._at(1, MARK.itemsize * number, np.array((crc, 1), MARK).tobytes())
        self._waiting.clear()
        now = time.monotonic()
        self._due = now + max(EVERY, SHARE * (now - began))

    def _at(self, which: int, place: int, data: bytes) -> None:
        file, parts = self._files[which], self._parts
        with naming(parts.folder / (FEATURES, MARKS)[which], 4 * parts.rows * parts.width):
            file.seek(place)
            rest = memoryview(data)
            while rest:  # a write may take a part of it
                rest = rest[file.write(rest) :]


def folder_beside(output: Path, what: Any) -> Path:
    """The folder for features that `what`, a value of JSON, defines."""
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return output.absolute().with_name(f".{output.name}.{key[:16]}.parts")
