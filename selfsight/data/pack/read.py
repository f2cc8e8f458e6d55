"""Packs: images in a few memory-mapped files. `docs/data.md` describes the format."""

import hashlib
import json
import mmap
import os
import warnings
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.data.packed_strings import PackedStrings
from selfsight.data.source import content_hash
from selfsight.errors import UserError

DESCRIPTION = "pack.json"
FORMAT, VERSION = "selfsight-pack", 1
FORMATS = (FORMAT, "tacit-pack")  # the second was written before the package was renamed
BLOB = {"jpeg": "images.bin", "raw": "images.npy"}  # kind of a pack -> the file of its images
BLOCK = 256  # images of one task of a thread

# Images of a raw pack are read-only, so that nothing can change its files; torch warns about that.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


class Pack:
    """One split of a pack, opened without reading its images.

    Attributes:
        origins: (N, 16) uint8, the content hash of the image that each image was made from.
        hashes: (N, 16) uint8, the content hash of each image as it is stored here.
    Raises: UserError if the pack is unfinished, of another version, or if a file has a wrong size.
    """

    def __init__(self, folder: Path, labels: bool = True) -> None:
        self._folder, about = folder, read_description(folder)
        try:
            self._map(folder, about)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"data.path={folder}: this pack is damaged ({reason}); make or copy it again"
            ) from None
        if not labels:
            self.classes = self.labels = None

    def _map(self, folder: Path, about: dict[str, Any]) -> None:
        """Map all files into memory. Raises: ValueError if one does not match the description."""
        self._count = n = about["count"]
        self.classes, self.labels, self._kind = about["classes"], None, about["kind"]
        if self.classes is not None:
            self.labels = _array(folder / "labels.npy", np.int64, (n,))
        self.hashes = _array(folder / "hashes.npy", np.uint8, (n, 16))
        self.origins = _array(folder / "source_hashes.npy", np.uint8, (n, 16))
        ends = _array(folder / "name_offsets.npy", np.uint64, (n + 1,))
        self._names = PackedStrings(_bytes(folder / "names.bin", int(ends[-1])), ends)
        if self._kind == "raw":
            side = about["size"]
            self._images = _array(folder / BLOB["raw"], np.uint8, (n, side, side, 3))
        else:
            self._ends = _array(folder / "offsets.npy", np.uint64, (n + 1,))
            self._images = _bytes(folder / BLOB["jpeg"], int(self._ends[-1]))

    def __len__(self) -> int:
        return self._count

    def read(self, i: int) -> bytes | np.ndarray:
        if self._kind == "raw":
            return self._images[i]
        return self._images[self._ends[i] : self._ends[i + 1]]

    def files(self) -> list[Path]:
        return sorted(self._folder.iterdir())

    def name(self, i: int) -> str:
        """The image's name in the source that was packed."""
        return self._names[i]


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


def _array(file: Path, kind: type, shape: tuple[int, ...]) -> np.ndarray:
    # a plain array on the mapped memory, since slicing a np.memmap takes microseconds
    array = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    if array.dtype != kind or array.shape != shape:
        found = f"{array.dtype} {array.shape}"
        raise ValueError(f"{file.name} contains {found} instead of {np.dtype(kind)} {shape}")
    return array


def _bytes(file: Path, size: int) -> mmap.mmap:
    with file.open("rb") as stream:
        found = os.fstat(stream.fileno()).st_size
        if found != size:
            raise ValueError(f"{file.name} is {found:,} bytes long instead of {size:,}")
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
