"""What a pack is made of and how, and whether that is still what it was made of."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from selfsight import distributed
from selfsight.config import Config, differences
from selfsight.data.config import LOADING_KEYS, DataConfig
from selfsight.data.decode import decoded, read
from selfsight.data.pack.journal import RECORD, begun, is_complete
from selfsight.data.pack.read import (
    BANDS_VERSION,
    DESCRIPTION,
    FORMAT,
    FORMATS,
    VERSION,
    Pack,
    read_description,
)
from selfsight.data.source import (
    BadImage,
    Source,
    Watch,
    cache_beside,
    content_hash,
    origins,
    stamp,
)
from selfsight.errors import UserError
from selfsight.files import Damaged, read_json, sealed, write_json

USUAL = {"channels": 3, "bits": 8}  # of the images of a pack that does not say it
PLAN, RECORDS = "plan.json", "records.bin"
STAMP = "stamp"  # key of plan.json and of the cache: the state of the source's files
BLOCK = 512  # images that are compared at a time


class PackConfig(Config):
    """How a pack stores an image."""

    raw: bool = False  # true: pixels of the central square; false: a JPEG file of the whole image
    size: int = Field(256, ge=1)  # pixels: side of the square; JPEG: maximum of the shorter side
    quality: int = Field(90, ge=1, le=100)  # of JPEG files that are encoded here

    @property
    def kind(self) -> str:
        return "raw" if self.raw else "jpeg"


def make_plan(source: Source, split: str, data: DataConfig, config: PackConfig) -> dict[str, Any]:
    """The description of the pack before it is written; packs of other plans are not continued."""
    digest = hashlib.blake2b(repr(source.classes).encode(), digest_size=16)
    if source.labels is not None:
        digest.update(source.labels.astype("<i8").tobytes())
    for i in range(len(source)):
        digest.update(os.fsencode(source.name(i)) + b"\0")
    which = {"mode": "json", "exclude": set(LOADING_KEYS), "exclude_defaults": True}
    other = {k: v for k, v in (("channels", data.channels), ("bits", data.bits)) if v != USUAL[k]}
    if not config.raw and not (data.channels in (1, 3) and data.bits == 8):
        key = "bits=16" if data.bits == 16 else f"channels={data.channels}"
        raise UserError(
            f"data.{key}: a JPEG file holds 1 or 3 channels of 8 bits; add --raw, which stores "
            f"pixels, or leave out data.{key.partition('=')[0]}"
        )
    return {
        "format": FORMAT,
        "version": BANDS_VERSION if other else VERSION,
        **other,
        "kind": config.kind,
        "size": config.size,
        "quality": None if config.raw else config.quality,
        "split": split,
        "source": {"source": data.source} | data.model_dump(**which),
        "source_images": len(source),
        "source_hash": digest.hexdigest(),  # of classes, labels and names
    }


def refuse_others(folder: Path, plan: dict[str, Any] | None) -> None:
    """Raises: UserError if the folder, or its unfinished pack, has another plan than this."""
    work = work_folder(folder)
    if folder.exists():
        if not (folder / DESCRIPTION).exists():
            raise UserError(
                f"--output {folder.parent}: '{folder}' exists and is not a pack; choose another "
                f"folder with --output"
            )
        found = read_description(folder)
    elif any((work / name).exists() for name in (PLAN, DESCRIPTION, RECORDS)):
        folder, found = work, begun(work, PLAN, DESCRIPTION)
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


def work_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.packing")


# Changed images -----------------------------------------------------------------------------------

Origins = Iterable[tuple[int, bytes | None]]  # index in the source, content hash; None: left out


def threads(data: DataConfig) -> int:
    return data.workers or distributed.cores()


def origin_of(source: Source, i: int, data: bytes | np.ndarray) -> bytes:
    """The content hash of image i before any packing, given what `read` returned."""
    known = origins(source)
    made = known is not None and known[i].any()
    return known[i].tobytes() if made else content_hash(data)


def check_pack(source: Source, folder: Path, threads: int, watch: Watch) -> None:
    """Raises: UserError if the images of a finished pack have changed since.

    They are read only if a file has another state than when they were packed or compared.
    """
    now, file = stamp(source), _cache_file(folder)
    if now is not None and _stored_stamp(file) == [now, _identity(folder)]:
        return
    pack, at = Pack(folder, labels=False), 0

    def packed() -> Iterator[tuple[int, bytes | None]]:
        nonlocal at
        for i in range(len(source)):
            there = at < len(pack) and source.name(i) == pack.name(at)
            yield i, pack.origins[at].tobytes() if there else None
            at += there

    _compare(source, packed(), len(source), folder, threads, watch)
    remember(folder, now)


def check_journal(source: Source, work: Path, threads: int, watch: Watch) -> str | None:
    """The state of the source's files, for the plan of the pack that is begun or continued here.

    Raises: UserError if images that are packed so far have changed since.
    """
    now, file = stamp(source), work / RECORDS
    if file.is_file() and (now is None or _stored_stamp(work / PLAN) != now):
        table = np.fromfile(file, RECORD, file.stat().st_size // RECORD.itemsize)
        whole = takewhile(is_complete, table)  # a power cut may have torn the last ones
        done = ((i, r["origin"].tobytes() if r["whole"] else None) for i, r in enumerate(whole))
        _compare(source, done, len(table), work, threads, watch)
    return now


def remember(folder: Path, state: str | None) -> None:
    """Keep the state of the files that a pack was made of, so that they need not be read again."""
    if state is None:
        return
    with contextlib.suppress(OSError):  # a full disk, a read-only folder: they are read again
        write_json(_cache_file(folder), sealed({STAMP: [state, _identity(folder)]}))


def _cache_file(folder: Path) -> Path:
    key = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:16]
    return cache_beside(folder.parent) / f"pack-{key}.json"


def _identity(folder: Path) -> str:
    """A hash of pack.json, of a pack that may still be in its folder of work."""
    place = folder if folder.exists() else work_folder(folder)
    return hashlib.sha256((place / DESCRIPTION).read_bytes()).hexdigest()


def _stored_stamp(file: Path) -> Any:
    try:
        return read_json(file).get(STAMP)
    except (OSError, Damaged):  # none: the images are compared
        return None


def _compare(
    source: Source, packed: Origins, count: int, folder: Path, threads: int, watch: Watch
) -> None:
    """Raises: UserError for the first image that is another than when it was packed. One that
    cannot be read now is not compared; one that was left out as broken must be broken still."""

    def changed(item: tuple[int, bytes | None]) -> bool:
        i, origin = item
        try:
            data = read(source, i)
            if origin is None:
                decoded(source, i, data)
                return True
            return origin_of(source, i, data) != origin
        except BadImage:
            return False

    items, done = iter(packed), 0
    with ThreadPoolExecutor(threads, "compare") as pool:
        while block := list(islice(items, BLOCK)):
            for (i, _), differs in zip(block, pool.map(changed, block), strict=True):
                if differs:
                    raise UserError(
                        f"'{folder}': its images have changed since they were packed, such as "
                        f"{source.name(i)}; remove it to pack them again, or choose another folder "
                        f"with --output"
                    )
            done += len(block)
            if done < count:  # nothing is shown of a few
                watch(f"comparing {folder.name}", done, count)
