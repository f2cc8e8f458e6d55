"""Packs: images in a few files. `docs/data.md` describes the format.

Images are read, not mapped into memory: if a file is cut short meanwhile, a read is an error, but
touching a mapped page that is gone kills the process.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.data.source import content_hash
from selfsight.errors import UserError
from selfsight.files import read_at

DESCRIPTION = "pack.json"
FORMAT, VERSION = "selfsight-pack", 1
FORMATS = (FORMAT, "tacit-pack")  # the second was written before the package was renamed
BLOB = {"jpeg": "images.bin", "raw": "images.npy"}  # kind of a pack -> the file of its images
BLOCK = 256  # images of one task of a thread

# Images of a raw pack are read-only, so that nothing can change its files; torch warns about that.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class Pack:
    """One split of a pack, opened without reading its images.

    Raises: UserError if the pack is unfinished, of another version, or if a file has a wrong size.
    """

    def __init__(self, folder: Path, labels: bool = True) -> None:
        self._folder, about = folder, read_description(folder)
        with self._whole():
            self._open(folder, about)
        if not labels:
            self.classes = self.labels = None

    def _open(self, folder: Path, about: dict[str, Any]) -> None:
        """Open all files. Raises: ValueError if one does not match the description."""
        self._count = n = about["count"]
        self.classes, self.labels, self._kind = about["classes"], None, about["kind"]
        if self.classes is not None:
            self.labels = _Table(folder / "labels.npy", np.int64, (n,)).load()
        self._hashes = _Table(folder / "hashes.npy", np.uint8, (n, 16))
        self._origins = _Table(folder / "source_hashes.npy", np.uint8, (n, 16))
        self._name_ends = _Table(folder / "name_offsets.npy", np.uint64, (n + 1,))
        self._last_name = int(self._name_ends.load()[-1])
        self._names = _File(folder / "names.bin", self._last_name)
        if self._kind == "raw":
            self._shape = (about["size"], about["size"], 3)
            self._images = _Table(folder / BLOB["raw"], np.uint8, (n, *self._shape))
            self._start, self._length = self._images.start, math.prod(self._shape)
        else:
            self._ends = _Table(folder / "offsets.npy", np.uint64, (n + 1,)).load()
            self._last = int(self._ends[-1])
            self._images = _File(folder / BLOB["jpeg"], self._last)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Raises: UserError in place of what a file of a wrong size or content raises."""
        try:
            yield
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"data.path={self._folder}: this pack is damaged ({reason}); make or copy it again"
            ) from None

    @functools.cached_property
    def hashes(self) -> np.ndarray:
        """(N, 16) uint8, the content hash of each image as it is stored here."""
        with self._whole():
            return self._hashes.load()

    @functools.cached_property
    def origins(self) -> np.ndarray:
        """(N, 16) uint8, the content hash of the image that each image was made from."""
        with self._whole():
            return self._origins.load()

    def __len__(self) -> int:
        return self._count

    def read(self, i: int) -> bytes | np.ndarray:
        """As every source. Raises: UserError if the file has become shorter."""
        if self._kind == "raw":
            data = self._images.read(self._length, self._start + i * self._length)
            if len(data) == self._length:
                return np.frombuffer(data, np.uint8).reshape(self._shape)
        else:
            start, end = self._ends[i : i + 2].tolist()
            data = self._images.read(end - start, start) if start <= end <= self._last else b""
            if len(data) == end - start:
                return data
        raise self._shorter(self._images)

    def _shorter(self, file: "_File") -> UserError:
        return UserError(
            f"data.path={self._folder}: this pack is damaged ({file.name} has become shorter since "
            f"it was opened, or where its parts begin was changed); make or copy it again"
        )

    def files(self) -> list[Path]:
        return sorted(self._folder.iterdir())

    def name(self, i: int) -> str:
        """The image's name in the source that was packed."""
        ends = self._name_ends
        place = ends.start + 8 * i
        both = ends.read(16, place)
        if len(both) < 16:
            raise self._shorter(ends)
        start, end = np.frombuffer(both, np.uint64).tolist()
        name = self._names.read(end - start, start) if start <= end <= self._last_name else b""
        if len(name) != end - start:
            raise self._shorter(self._names)
        return os.fsdecode(name)


def read_description(folder: Path) -> dict[str, Any]:
    """The content of pack.json.

    Raises: UserError if it does not exist or describes no pack of this version.
    """
    where = f"data.path={folder}"
    try:
        about = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{where}: contains no finished pack; if packing was interrupted, run its command again"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {DESCRIPTION} is not readable: {error}") from None
    if not isinstance(about, dict) or about.get("format") not in FORMATS:
        raise UserError(f"{where}: {DESCRIPTION} is not the description of a pack")
    if about.get("version") != VERSION or about.get("kind") not in BLOB:
        raise UserError(
            f"{where}: a pack of version {about.get('version')} and kind {about.get('kind')}; this "
            f"Selfsight reads version {VERSION}, {' and '.join(BLOB)}. Update it, or pack again"
        )
    return about


def verify(folder: Path, pool: Executor) -> list[str]:
    """Compare all bytes of a pack with its checksums; returns a line for each difference.

    Raises: UserError if the pack cannot be opened.
    """
    pack, about = Pack(folder), read_description(folder)
    problems = []
    for file, packed in about["checksums"].items():
        if checksum(folder / file) != packed:
            problems.append(f"{folder / file}: damaged: its checksum is not that of the packing")

    def damaged(start: int) -> list[int]:
        rows = range(start, min(start + BLOCK, len(pack)))
        return [i for i in rows if content_hash(bytes(pack.read(i))) != pack.hashes[i].tobytes()]

    for rows in pool.map(damaged, range(0, len(pack), BLOCK)):
        problems += [f"{folder} image {i} ({pack.name(i)}): damaged" for i in rows]
    return problems


def checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class _File:
    """A file that stays open; many threads read from it.

    Raises: ValueError if its size is wrong.
    """

    def __init__(self, path: Path, size: int | None) -> None:
        self.name, self._path, self._file = path.name, path, path.open("rb", buffering=0)
        self._descriptor = self._file.fileno()
        found = os.fstat(self._descriptor).st_size
        if size is not None and found != size:
            raise ValueError(f"{path.name} is {found:,} bytes long instead of {size:,}")

    def read(self, size: int, place: int) -> bytes:
        """The bytes from there on; fewer at the end of the file."""
        return read_at(self._descriptor, size, place)


class _Table(_File):
    """A .npy file.

    Attributes:
        start: where its numbers begin, in bytes.
    Raises: ValueError if it holds other numbers than these, or not all of them.
    """

    def __init__(self, path: Path, kind: type, shape: tuple[int, ...]) -> None:
        super().__init__(path, None)
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
