"""Packs: images in a few files. `docs/data.md` describes the format.

Images are read, not mapped into memory: if a file is cut short meanwhile, a read is an error, but
touching a mapped page that is gone kills the process.
"""

import functools
import json
import math
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.batch import MOST_CHANNELS
from selfsight.data.by_machine import Copied
from selfsight.data.names import NameBlock, blocks
from selfsight.data.pack.tables import File, Table, ascending
from selfsight.data.packed_strings import PackedStrings
from selfsight.data.patience import MACHINE
from selfsight.data.source import ChangedImage, content_hash
from selfsight.errors import UserError, described
from selfsight.files import (
    Damaged,
    file_hash,
    parse_json,
    read_text,
    unsealed,
)

DESCRIPTION = "pack.json"
FORMAT, VERSION = "selfsight-pack", 1
BANDS_VERSION = 2  # of a pack whose images are not RGB of 8 bits: it says channels and bits
FORMATS = (FORMAT, "tacit-pack")  # the second was written before the package was renamed
BLOB = {"jpeg": "images.bin", "raw": "images.npy"}  # kind of a pack -> the file of its images
LARGEST_DESCRIPTION = 2**26  # bytes of pack.json, which lists the names of all classes
BLOCK = 256  # images of one task of a thread

# Images of a raw pack are read-only, so that nothing can change its files; torch warns about that.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class Pack(Copied):
    """One split of a pack, opened without reading its images.

    Attributes:
        channels: of an image.
        levels: (0, 65535) of a pack of 16 bits: its values fill them; else None.
        origins: (N, 16) uint8, the content hash of the image that each image was made from.
        hashes: (N, 16) uint8, the content hash of each image as it is stored here.
    Opening it compares all files but that of the images with their checksums; each image is
    compared with its hash when it is first read.
    Raises: UserError if the pack is unfinished, of another version, or if a file is not as it was
        written.
    """

    def __init__(self, folder: Path, labels: bool = True) -> None:
        self._folder, about = folder, read_description(folder)
        try:
            self._open(folder, about)
        except (UserError, MemoryError):
            raise
        except OSError as error:
            if error.errno not in MACHINE:
                raise _damaged(folder, described(error)) from None
            raise  # a disk or a server is away; the pack may be whole
        except Exception as error:  # on damaged files NumPy raises more kinds than it documents
            raise _damaged(folder, " ".join(str(error).split())) from None
        if not labels:
            self.classes = self.labels = None

    @functools.cached_property
    def _seen(self) -> np.ndarray:
        """A bit for each image, 1 if its bytes were compared with its hash. Of two threads that set
        bits of one byte one may be lost: an image is then compared again."""
        return np.zeros(self._count // 8 + 1, np.uint8)

    def _open(self, folder: Path, about: dict[str, Any]) -> None:
        """Open all files. Raises: UserError, or another exception, if one does not match the
        description."""
        _compare(folder, about)
        self._count = n = about["count"]
        self.classes, self.labels, self._kind = about["classes"], None, about["kind"]
        self.channels = about.get("channels", 3)
        self.levels = (0, 65535) if about.get("bits", 8) == 16 else None
        self._type = np.uint8 if self.levels is None else np.uint16
        if self.classes is not None:
            self.labels = Table(folder / "labels.npy", np.int64, (n,)).load()
            if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
                raise ValueError("labels.npy contains labels of no class")
        self._hashes = Table(folder / "hashes.npy", np.uint8, (n, 16))
        self._origins = Table(folder / "source_hashes.npy", np.uint8, (n, 16))
        self._name_ends = Table(folder / "name_offsets.npy", np.uint64, (n + 1,))
        self._last_name = int(ascending(self._name_ends)[-1])
        self._names = File(folder / "names.bin", self._last_name)
        if self._kind == "raw":
            self._shape = (about["size"], about["size"], self.channels)
            self._images = Table(folder / BLOB["raw"], self._type, (n, *self._shape))
            self._start = self._images.start
            self._length = math.prod(self._shape) * np.dtype(self._type).itemsize
        else:
            self._ends = ascending(Table(folder / "offsets.npy", np.uint64, (n + 1,)))
            self._images = File(folder / BLOB["jpeg"], int(self._ends[-1]))

    @property
    def hashes(self) -> np.ndarray:
        """(N, 16) uint8, the content hash of each image as it is stored here."""
        return self._loaded(self._hashes)

    @functools.cached_property
    def origins(self) -> np.ndarray:
        """(N, 16) uint8, the content hash of the image that each image was made from."""
        return self._loaded(self._origins)

    def _loaded(self, table: Table) -> np.ndarray:
        try:
            return table.load()
        except ValueError as error:
            raise _damaged(self._folder, " ".join(str(error).split())) from None

    def __len__(self) -> int:
        return self._count

    def read(self, i: int) -> bytes | np.ndarray:
        """Image i as it is stored. Raises: ChangedImage if its bytes are not as they were."""
        image = self._stored(i)
        if not self._seen[i >> 3] >> (i & 7) & 1:
            if not self.is_whole(i):
                where = f"its bytes in the pack '{self._folder}'"
                raise ChangedImage(self.name(i), f"{where} have changed; restore or repack it")
            self._seen[i >> 3] |= 1 << (i & 7)
        return image

    def is_whole(self, i: int) -> bool:
        """Whether the bytes of image i are those that were packed."""
        stored = self._hashes.read(16, self._hashes.start + 16 * i)
        if len(stored) < 16:
            raise self._shorter(self._hashes)
        return content_hash(bytes(self._stored(i))) == stored

    def _stored(self, i: int) -> bytes | np.ndarray:
        if self._kind == "raw":
            data = self._images.read(self._length, self._start + i * self._length)
            if len(data) == self._length:
                return np.frombuffer(data, self._type).reshape(self._shape)
        else:
            start, end = self._ends[i : i + 2].tolist()
            data = self._images.read(end - start, start)
            if len(data) == end - start:
                return data
        raise self._shorter(self._images)

    def _shorter(self, file: File) -> UserError:
        return _damaged(self._folder, f"{file.name} has become shorter since it was opened")

    def files(self) -> list[Path]:
        return sorted(self._folder.iterdir())

    def name(self, i: int) -> str:
        """The image's name in the source that was packed."""
        ends = self._name_ends
        both = ends.read(16, ends.start + 8 * i)
        if len(both) < 16:
            raise self._shorter(ends)
        start, end = np.frombuffer(both, np.uint64).tolist()
        name = self._names.read(end - start, start) if start <= end <= self._last_name else b""
        if len(name) != end - start:
            raise self._shorter(self._names)
        return os.fsdecode(name)

    def name_blocks(self) -> Iterator[NameBlock]:
        ends = self._name_ends
        for rows in blocks(len(self)):
            size, place = 8 * (len(rows) + 1), ends.start + 8 * rows.start
            places = np.frombuffer(ends.read(size, place), np.uint64)
            start, stop = places[[0, -1]].tolist()
            blob = self._names.read(stop - start, start)
            if len(places) != len(rows) + 1 or len(blob) != stop - start:
                raise self._shorter(self._names)
            yield b"", PackedStrings(blob, places - places[0]).part(0, len(rows))


def read_description(folder: Path) -> dict[str, Any]:
    """The content of pack.json.

    Raises: UserError if it does not exist or describes no pack of this version.
    """
    where, file = f"data.path={folder}", folder / DESCRIPTION
    try:
        about = parse_json(read_text(file, LARGEST_DESCRIPTION), file)
    except FileNotFoundError:
        raise UserError(
            f"{where}: contains no finished pack; if packing was interrupted, run its command again"
        ) from None
    except Damaged as error:
        raise UserError(f"{where}: {DESCRIPTION} is not readable: {error.reason}") from None
    except OSError as error:
        raise UserError(f"{where}: {DESCRIPTION} is not readable: {error.strerror}") from None
    if about.get("format") not in FORMATS:
        raise UserError(f"{where}: {DESCRIPTION} is not the description of a pack")
    if about.get("version") not in (VERSION, BANDS_VERSION) or about.get("kind") not in [*BLOB]:
        raise UserError(
            f"{where}: a pack of version {about.get('version')} and kind {about.get('kind')}; this "
            f"Selfsight reads versions {VERSION} and {BANDS_VERSION}, {' and '.join(BLOB)}. Update "
            f"it, or pack again"
        )
    try:
        about = unsealed(about, file)
    except Damaged as error:
        raise _damaged(folder, f"{DESCRIPTION}: {error.reason}") from None
    wrong = _wrong(about)
    if wrong:
        raise _damaged(folder, f"{DESCRIPTION}: {wrong} cannot be {about.get(wrong)!r:.60}")
    return about


def _damaged(folder: Path, reason: str) -> UserError:
    return UserError(f"data.path={folder}: this pack is damaged ({reason}); make or copy it again")


def _wrong(about: dict[str, Any]) -> str | None:
    """The first key with a value that no pack has."""
    classes, sums = about.get("classes"), about.get("checksums")
    names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    counts = {"count": 1, "size": 1, "bad_images": 0}  # and the least that each may be
    good = {
        **{key: type(about.get(key)) is int and about[key] >= n for key, n in counts.items()},
        "channels": about.get("channels", 3) in range(1, MOST_CHANNELS + 1),
        "bits": about.get("bits", 8) in (8, 16),
        "classes": classes is None or (names and 0 < len(classes) == len(set(classes))),
        "checksums": isinstance(sums, dict) and sums.keys() == _small_files(about),
    }
    return next((key for key, right in good.items() if not right), None)


def _small_files(about: dict[str, Any]) -> set[str]:
    """The names of all files of a pack but that of the images and the description."""
    files = {"hashes.npy", "source_hashes.npy", "names.bin", "name_offsets.npy"}
    files |= {"labels.npy"} if about.get("classes") is not None else set()
    return files | ({"offsets.npy"} if about["kind"] == "jpeg" else set())


def _compare(folder: Path, about: dict[str, Any]) -> None:
    for file, packed in about["checksums"].items():
        if file_hash(folder / file) != packed:
            raise ValueError(f"{file}: its checksum is not that of the packing")


def verify(folder: Path, pool: Executor) -> list[str]:
    """Compare all bytes of a pack with its checksums; returns a line for each difference.

    Raises: UserError if the pack cannot be opened.
    """
    pack, problems = Pack(folder), []
    text = read_text(folder / DESCRIPTION)
    if text != json.dumps(json.loads(text), indent=2) + "\n":
        problems.append(f"{folder / DESCRIPTION}: not as it was written, but of the same meaning")

    def damaged(start: int) -> list[int]:
        rows = range(start, min(start + BLOCK, len(pack)))
        return [i for i in rows if not pack.is_whole(i)]

    for rows in pool.map(damaged, range(0, len(pack), BLOCK)):
        problems += [f"{folder} image {i} ({pack.name(i)}): damaged" for i in rows]
    return problems
