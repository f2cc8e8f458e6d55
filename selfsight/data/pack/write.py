"""Write packs: each image is read, shrunk and encoded once, in the source's order.

A split is written in DIR/.SPLIT.packing. Each image is appended to one file, and then its record to
another. If the process ends, all images up to some index are complete, and the same command
continues after them. The folder is renamed to DIR/SPLIT when everything is written.
"""

import contextlib
import functools
import io
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from selfsight import __version__
from selfsight.data.bad import BadImages
from selfsight.data.config import DataConfig
from selfsight.data.decode import JPEG, decoded, orientation, read
from selfsight.data.images import center_box, resize
from selfsight.data.pack.journal import BROKEN, RECORD, Journal, Made
from selfsight.data.pack.plan import (
    PLAN,
    RECORDS,
    STAMP,
    PackConfig,
    check_journal,
    check_pack,
    make_plan,
    origin_of,
    refuse_others,
    remember,
    threads,
    work_folder,
)
from selfsight.data.pack.read import BLOB, DESCRIPTION
from selfsight.data.packed_strings import PackedStrings
from selfsight.data.patience import Patience
from selfsight.data.source import BadImage, Source, Watch, content_hash
from selfsight.data.sources.open import open_source, relocated, with_range
from selfsight.errors import UserError
from selfsight.files import file_hash, naming, rename_durably, sealed, write_atomically, write_json
from selfsight.locks import locked

IMAGES, BAD = "images.part", "bad_images.txt"
AHEAD = 8  # images per thread that are being encoded or wait to be written


def pack(
    data: DataConfig, config: PackConfig, output: Path, watch: Watch
) -> list[tuple[Path, bool]]:
    """Pack both splits, or the rest of them.

    Returns: for each split its folder, and whether it was written by this call.
    Raises: UserError if `output` contains something else, if more images are undecodable than
        data.max_bad allows, or if it cannot be written. What is written stays, and the same call
        continues.
    """
    # absolute, since paths become the names of the images
    data = data.model_copy(update=relocated(dict(data), os.path.abspath))
    train = open_source(data, "train")
    sources = {"test": open_source(with_range(data, train), "test"), "train": train}
    there = {split: source for split, source in sources.items() if source is not None}
    plans = {split: make_plan(source, split, data, config) for split, source in there.items()}
    folders = []
    try:
        output.mkdir(parents=True, exist_ok=True)
        with locked(output):
            for split in sources:
                refuse_others(output / split, plans.get(split))
            # the train split is last: an unfinished folder has none, so it cannot be opened
            for split, plan in plans.items():
                folder = output / split
                folders.append((folder, not folder.exists()))
                if folder.exists():
                    check_pack(sources[split], folder, threads(data), watch)
                else:
                    _pack_split(sources[split], folder, plan, data, config, watch)
    except OSError as error:
        raise UserError(
            f"--output {output}: {error.strerror or error}. What is packed so far stays; remove "
            f"the cause and run the same command again to continue"
        ) from None
    return folders[::-1]


def _pack_split(
    source: Source,
    folder: Path,
    plan: dict[str, Any],
    data: DataConfig,
    config: PackConfig,
    watch: Watch,
) -> None:
    work = work_folder(folder)
    if not (work / DESCRIPTION).exists():
        state = check_journal(source, work, threads(data), watch)
        write_json(work / PLAN, sealed({**plan, STAMP: state}))
        bad = BadImages(work / BAD, len(source), data.max_bad)
        header = _header(0, plan) if config.raw else b""
        with naming(work / IMAGES), Journal(work / IMAGES, work / RECORDS, header) as journal:
            rows = range(journal.count, len(source))
            with contextlib.closing(_made(source, rows, config, data)) as images:
                for made in images:
                    if isinstance(made, BadImage):
                        bad.note(made)
                        made = BROKEN
                    journal.add(made)
                    watch(f"packing {plan['split']}", journal.count, len(source))
        _finish(source, work, plan)
        remember(folder, state)
    if (work / IMAGES).exists():
        rename_durably(work / IMAGES, work / BLOB[config.kind])
    for path in (work / PLAN, work / RECORDS, *work.glob(".*.tmp")):  # the last: of a crash
        path.unlink(missing_ok=True)
    rename_durably(work, folder)


def _made(
    source: Source, rows: range, config: PackConfig, data: DataConfig
) -> Iterator[Made | BadImage]:
    """The encoded images in order, made by all threads; a few are in memory at a time."""
    count, patience = threads(data), Patience.of(data)
    with ThreadPoolExecutor(count, "pack") as pool:
        waiting: deque[Future] = deque()
        try:
            for i in rows:
                waiting.append(pool.submit(_make, source, i, config, patience))
                if len(waiting) >= AHEAD * count:
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
    origin = origin_of(source, i, data)
    if config.raw:
        square = center_box(*pixels.shape[:2], 1.0)
        stored = resize(pixels, square, config.size).tobytes()
    elif isinstance(data, bytes) and _fits(data, pixels, config):
        stored = data
    else:
        small = np.ascontiguousarray(shrink(pixels, config.size))
        try:
            colours = {"colorspace": "RGB", "colorsubsampling": "420"}
            if small.shape[2] == 1:
                colours = {"colorspace": "GRAY", "colorsubsampling": "Gray"}
            stored = simplejpeg.encode_jpeg(small, config.quality, **colours)
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
    """(H, W, C) uint8 with the shorter side at most `size`, resized with antialiasing."""
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    if scale >= 1:
        return pixels
    return resize(pixels, [0, 0, height, width], (round(height * scale), round(width * scale)))


def _header(count: int, plan: dict[str, Any]) -> bytes:
    """The header of a .npy file of `count` images; NumPy pads it to one length for any count."""
    header = io.BytesIO()
    shape = (count, plan["size"], plan["size"], plan.get("channels", 3))
    kind = "<u2" if plan.get("bits") == 16 else "|u1"
    about = {"descr": kind, "fortran_order": False, "shape": shape}
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
            images.write(_header(len(rows), plan))
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
        "checksums": {name: file_hash(work / name) for name in files},
    }
    write_json(work / DESCRIPTION, sealed(about))


def _save(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:  # given a path, np.save would add .npy to it
        np.save(file, array)
