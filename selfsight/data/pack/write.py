"""Write packs: each image is read, shrunk and encoded once, in the source's order.

A split is written in DIR/.SPLIT.packing. Each image is appended to one file, and then its record to
another. If the process ends, all images up to some index are complete, and the same command
continues after them. The folder is renamed to DIR/SPLIT when everything is written.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from pydantic import Field

from selfsight import __version__, distributed
from selfsight.config import Config, differences
from selfsight.data.bad import BadImages
from selfsight.data.decode import JPEG, decoded, orientation, read
from selfsight.data.images import center_box, resize
from selfsight.data.pack.journal import BROKEN, RECORD, Journal, Made
from selfsight.data.pack.read import (
    BLOB,
    DESCRIPTION,
    FORMAT,
    FORMATS,
    VERSION,
    checksum,
    read_description,
)
from selfsight.data.packed_strings import PackedStrings
from selfsight.data.patience import Patience
from selfsight.data.source import BadImage, Source, Watch, content_hash, origins
from selfsight.data.sources.open import LOADING_KEYS, DataConfig, PathSpec, is_pattern, open_source
from selfsight.errors import UserError
from selfsight.files import locked, rename_durably, write_atomically, write_json

PLAN, IMAGES, RECORDS, BAD = "plan.json", "images.part", "records.bin", "bad_images.txt"
AHEAD = 8  # images per thread that are being encoded or wait to be written


class PackConfig(Config):
    """How a pack stores an image."""

    raw: bool = False  # true: pixels of the central square; false: a JPEG file of the whole image
    size: int = Field(256, ge=1)  # pixels: side of the square; JPEG: maximum of the shorter side
    quality: int = Field(90, ge=1, le=100)  # of JPEG files that are encoded here

    @property
    def kind(self) -> str:
        return "raw" if self.raw else "jpeg"


def pack(
    data: DataConfig, config: PackConfig, output: Path, watch: Watch
) -> list[tuple[Path, bool]]:
    """Pack both splits, or the rest of them.

    Returns: for each split its folder, and whether it was written by this call.
    Raises: UserError if `output` contains something else, if more images are undecodable than
        data.max_bad allows, or if it cannot be written. What is written stays, and the same call
        continues.
    """
    data = _absolute(data)
    sources = {split: open_source(data, split) for split in ("test", "train")}
    there = {split: source for split, source in sources.items() if source is not None}
    plans = {split: _plan(source, split, data, config) for split, source in there.items()}
    folders = []
    try:
        output.mkdir(parents=True, exist_ok=True)
        with locked(output):
            for split in sources:
                _refuse_others(output / split, plans.get(split))
            # the train split is last: an unfinished folder has none, so it cannot be opened
            for split, plan in plans.items():
                folder = output / split
                folders.append((folder, not folder.exists()))
                if not folder.exists():
                    _pack_split(sources[split], folder, plan, data, config, watch)
    except OSError as error:
        raise UserError(
            f"--output {output}: {error.strerror or error}. What is packed so far stays; remove "
            f"the cause and run the same command again to continue"
        ) from None
    return folders[::-1]


def _absolute(data: DataConfig) -> DataConfig:
    """The same keys with absolute paths, since paths become the names of the images."""

    def absolute(path: PathSpec | None) -> PathSpec | None:
        if isinstance(path, tuple):
            return tuple(map(absolute, path))
        if path is None or is_pattern(path):
            return path
        return os.path.abspath(Path(path).expanduser())

    keys = ("path", "test_path", "image_dir", "test_image_dir")
    return data.model_copy(update={key: absolute(getattr(data, key)) for key in keys})


def _plan(source: Source, split: str, data: DataConfig, config: PackConfig) -> dict[str, Any]:
    """The description of the pack before it is written; packs of other plans are not continued."""
    digest = hashlib.blake2b(repr(source.classes).encode(), digest_size=16)
    if source.labels is not None:
        digest.update(source.labels.astype("<i8").tobytes())
    for i in range(len(source)):
        digest.update(os.fsencode(source.name(i)) + b"\0")
    which = {"mode": "json", "exclude": set(LOADING_KEYS), "exclude_defaults": True}
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": config.kind,
        "size": config.size,
        "quality": None if config.raw else config.quality,
        "split": split,
        "source": {"source": data.source} | data.model_dump(**which),
        "source_images": len(source),
        "source_hash": digest.hexdigest(),  # of classes, labels and names
    }


def _refuse_others(folder: Path, plan: dict[str, Any] | None) -> None:
    """Raises: UserError if the folder, or its unfinished pack, has another plan than this."""
    work = _work(folder)
    if folder.exists():
        if not (folder / DESCRIPTION).exists():
            raise UserError(
                f"--output {folder.parent}: '{folder}' exists and is not a pack; choose another "
                f"folder with --output"
            )
        found = read_description(folder)
    elif (plan_file := work / PLAN).exists() or (plan_file := work / DESCRIPTION).exists():
        folder, found = work, json.loads(plan_file.read_text(encoding="utf-8"))
    else:
        return
    if plan is None:
        raise UserError(
            f"'{folder}' is a pack, but these images have no test split; remove the folder, or "
            f"choose another one with --output"
        )
    same = {"format": FORMAT} if found.get("format") in FORMATS else {}  # under each of its names
    changed = differences({key: found.get(key) for key in plan} | same, plan)
    if changed:
        raise UserError(
            f"'{folder}' is a pack of something else ({'; '.join(changed)}); remove it, or choose "
            f"another folder with --output"
        )


def _work(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.packing")


def _pack_split(
    source: Source,
    folder: Path,
    plan: dict[str, Any],
    data: DataConfig,
    config: PackConfig,
    watch: Watch,
) -> None:
    work = _work(folder)
    if not (work / DESCRIPTION).exists():
        write_json(work / PLAN, plan)
        bad = BadImages(work / BAD, len(source), data.max_bad)
        header = _header(0, config.size) if config.raw else b""
        with Journal(work / IMAGES, work / RECORDS, header) as journal:
            rows = range(journal.count, len(source))
            with contextlib.closing(_made(source, rows, config, data)) as images:
                for made in images:
                    if isinstance(made, BadImage):
                        bad.note(made)
                        made = BROKEN
                    journal.add(made)
                    watch(f"packing {plan['split']}", journal.count, len(source))
        _finish(source, work, plan)
    if (work / IMAGES).exists():
        rename_durably(work / IMAGES, work / BLOB[config.kind])
    for path in (work / PLAN, work / RECORDS, *work.glob(".*.tmp")):  # the last: of a crash
        path.unlink(missing_ok=True)
    rename_durably(work, folder)


def _made(
    source: Source, rows: range, config: PackConfig, keys: DataConfig
) -> Iterator[Made | BadImage]:
    """The encoded images in order, made by all threads; a few are in memory at a time."""
    threads, patience = keys.workers or distributed.cores(), Patience.of(keys)
    with ThreadPoolExecutor(threads, "pack") as pool:
        waiting: deque[Future] = deque()
        try:
            for i in rows:
                waiting.append(pool.submit(_make, source, i, config, patience))
                if len(waiting) >= AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _make(source: Source, i: int, config: PackConfig, patience: Patience) -> Made | BadImage:
    try:
        data = read(source, i, patience)
        pixels = decoded(source, i, data, patience)
    except BadImage as error:
        return error
    known = origins(source)
    made = known is not None and known[i].any()
    origin = known[i].tobytes() if made else content_hash(data)
    if config.raw:
        square = center_box(*pixels.shape[:2], 1.0)
        stored = resize(pixels, square, config.size).tobytes()
    elif isinstance(data, bytes) and _fits(data, pixels, config):
        stored = data
    else:
        small = np.ascontiguousarray(shrink(pixels, config.size))
        try:
            stored = simplejpeg.encode_jpeg(small, config.quality, colorsubsampling="420")
        except ValueError as error:  # JPEG has sides of at most 65,500 pixels
            return BadImage(source.name(i), f"cannot be stored as JPEG: {error}")
    return Made(stored, content_hash(stored), origin)


def _fits(data: bytes, pixels: np.ndarray, config: PackConfig) -> bool:
    """Whether a file is stored unchanged: a small upright JPEG file, gray or in colour."""
    if not data.startswith(JPEG) or min(pixels.shape[:2]) > config.size or orientation(data) != 1:
        return False
    try:
        return simplejpeg.decode_jpeg_header(data)[2] in ("Gray", "YCbCr", "RGB")
    except ValueError:
        return False


def shrink(pixels: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 with the shorter side at most `size`, resized with antialiasing."""
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    if scale >= 1:
        return pixels
    return resize(pixels, [0, 0, height, width], (round(height * scale), round(width * scale)))


def _header(count: int, size: int) -> bytes:
    """The header of a .npy file of `count` images; NumPy pads it to one length for any count."""
    header = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
    np.lib.format.write_array_header_1_0(header, about)
    return header.getvalue()


def _finish(source: Source, work: Path, plan: dict[str, Any]) -> None:
    """Write all files but that of the images; the description last, since it marks the end."""
    table = np.fromfile(work / RECORDS, RECORD)
    rows = np.flatnonzero(table["whole"])
    if not len(rows):
        raise UserError(
            f"data.path: none of the {len(table):,} images can be packed; {work / BAD} says why"
        )
    arrays = {"hashes.npy": table["stored"][rows], "source_hashes.npy": table["origin"][rows]}
    if source.labels is not None:
        arrays["labels.npy"] = source.labels[rows].astype(np.int64)
    if plan["kind"] == "raw":
        with (work / IMAGES).open("r+b") as images:
            images.write(_header(len(rows), plan["size"]))
    else:
        arrays["offsets.npy"] = np.concatenate([np.zeros(1, np.uint64), table["end"][rows]])
    names = PackedStrings.of(os.fsencode(source.name(i)) for i in rows.tolist())
    write_atomically(work / "names.bin", lambda path: path.write_bytes(names.blob))
    arrays["name_offsets.npy"] = names.offsets.astype(np.uint64)
    for name, array in arrays.items():
        write_atomically(work / name, functools.partial(_save, array))
    files = sorted(["names.bin", *arrays])
    about = {
        **plan,
        "count": len(rows),
        "classes": source.classes,
        "bad_images": len(table) - len(rows),
        "selfsight": __version__,
        "checksums": {name: checksum(work / name) for name in files},
    }
    write_json(work / DESCRIPTION, about)


def _save(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array)
