"""Tar files in WebDataset's layout: members of a sample share their path up to its first dot.

Numbers between dots are part of a sample's name, as in cat.12.jpg and 2024.01.02.png: WebDataset
would take them for names of parts, of which none is an image.
"""

import hashlib
import itertools
import json
import math
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from selfsight.data.by_machine import Copied
from selfsight.data.names import NameBlock, blocks_in
from selfsight.data.packed_strings import PackedStrings, load_index, save_index
from selfsight.data.source import Unreachable
from selfsight.data.sources.download import fetch
from selfsight.data.sources.files import ENDINGS, OPTIONAL
from selfsight.data.sources.tar import members
from selfsight.errors import UserError
from selfsight.files import read_at, state_of

IMAGES = (*ENDINGS, *map(str.encode, OPTIONAL), b"npy")  # the first found in a sample is used
LABELS = ("label", "class", "target", "cls", "category")  # keys of a .json, the first found
VERSION = 4  # of the saved index
_NAME = re.compile(rb"([^.]*(?:\.[0-9]+(?=\.))*)\.?(.*)", re.DOTALL)  # stem and ending
MOST_NAMES = 10_000_000  # that one pattern may stand for
LONGEST_LABEL = 2**24  # bytes of a member that holds a label, among other things
DESCRIPTORS = 256  # files kept open; a process may open 1,024 by default


class Index(NamedTuple):
    """The n images of one shard.

    Fields:
        keys: the path of each sample in the shard, without ending.
        offsets, sizes: (n,) int64, in bytes: where each image is in the shard.
        labels: (n,) int32, indices into `classes`; -1 for a sample without a label.
        classes: names or numbers as text, in order of appearance.
        skipped: () how many samples have no image.
    """

    keys: PackedStrings
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    classes: PackedStrings
    skipped: np.ndarray


class Shards(Copied):
    """Images in tar shards, in the order of the shards' names and of the members in each shard.

    Any image can be read by its index, so training shuffles over all shards. The label of a sample
    is a number or a name, in its .cls or in its .json under one of LABELS.

    Attributes:
        skipped: how many samples have no image; they are left out.
        notes: a line about them.
    """

    def __init__(
        self, files: list[Path] | list[str], labels: bool = True, cache: Path | None = None
    ) -> None:
        names = sorted({str(file) for file in files})
        self._files = [
            fetch(name, f"{n} of {len(names)}")
            if "://" in name
            else Path(name).expanduser().absolute()
            for n, name in enumerate(names, 1)
        ]
        shards = [_index(file, labels, cache) for file in self._files]
        self._states = {file: state_of(file) for file in self._files}
        self._ends = np.cumsum([len(shard.keys) for shard in shards])
        self._keys = PackedStrings.joined([shard.keys for shard in shards])
        self._offsets = np.concatenate([shard.offsets for shard in shards])
        self._sizes = np.concatenate([shard.sizes for shard in shards])
        self.skipped = sum(int(shard.skipped) for shard in shards)
        if not len(self):
            endings = " ".join(ending.decode() for ending in IMAGES)
            raise UserError(
                f"data.path={self._files[0]}: none of {self.skipped} samples has an image. An "
                f"image is a member KEY.ENDING, where KEY has no dot in its last part and ENDING "
                f"is one of {endings}"
            )
        self.classes, self.labels = self._label(shards)
        self.notes = []
        if self.skipped:
            self.notes = [
                f"data.path={self._files[0].parent}: {self.skipped:,} samples without an image are "
                f"left out"
            ]

    @cached_property
    def _opened(self) -> Callable[[Path], BinaryIO]:
        return lru_cache(DESCRIPTORS)(partial(_open, self._states))

    def _label(self, shards: list[Index]) -> tuple[list[str] | None, np.ndarray | None]:
        """Classes, sorted by number or name, and labels; None and None if no image has a label."""
        found = {name for shard in shards for name in shard.classes}
        if not found:
            return None, None
        classes = sorted(found, key=int if all(name.isdecimal() for name in found) else None)
        number = {name: n for n, name in enumerate(classes)}
        labels = np.concatenate(
            [np.array([*(number[c] for c in s.classes), -1])[s.labels] for s in shards]
        )
        missing = np.flatnonzero(labels < 0)
        if len(missing):
            raise UserError(
                f"data.path={self._files[0].parent}: {len(missing)} of {len(labels)} images have "
                f"no label, the first is {self.name(int(missing[0]))}; label all, or read none "
                f"with data.labels=false"
            )
        return classes, labels

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, i: int) -> bytes:
        """As every source. Raises: UserError if the shard has become shorter, or is another one."""
        path, size = self._file(i), int(self._sizes[i])
        try:
            file = self._opened(path)  # Python closes it when nothing refers to it
            data = read_at(file.fileno(), size, int(self._offsets[i]))
        except OSError as error:
            # what was open while a disk or server was away cannot be read when it is back
            self._opened.cache_clear()
            raise Unreachable(error.errno, error.strerror, str(path)) from None
        if len(data) < size:
            raise UserError(
                f"data.path={path}: this shard has become shorter since it was opened, at "
                f"{self._keys[i]}; make or download it again"
            )
        return data

    def name(self, i: int) -> str:
        return f"{self._file(i)} {self._keys[i]}"

    def name_blocks(self) -> Iterator[NameBlock]:
        for shard, rows in blocks_in(self._ends):
            prefix = os.fsencode(f"{self._files[shard]} ")
            yield prefix, self._keys.part(rows.start, rows.stop)

    def files(self) -> list[Path]:
        return self._files

    def _file(self, i: int) -> Path:
        return self._files[bisect_right(self._ends, i)]


def _open(states: dict[Path, tuple[int, int]], path: Path) -> BinaryIO:
    """Raises: UserError if it is not the shard that was indexed: its images are elsewhere."""
    file = path.open("rb", buffering=0)
    size, time = state_of(file.fileno())
    if (size, time) != states[path]:
        file.close()
        what = "become shorter" if size < states[path][0] else "been changed"
        raise UserError(
            f"data.path={path}: this shard has {what} since it was opened; make or download it "
            f"again"
        )
    return file


def _index(path: Path, labels: bool, cache: Path | None) -> Index:
    """The index of a shard: the one saved in `cache` if the shard has not changed, else a new one.

    Raises: UserError for a shard that cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            times = status.st_mtime_ns, status.st_ctime_ns  # the second no copy can set
            stamp = [VERSION, labels, status.st_size, *times, status.st_ino, path]
            digest = hashlib.sha256(os.fsencode(" ".join(map(str, stamp)))).hexdigest()[:24]
            saved = cache and cache / "shards" / f"{digest}.npz"
            index = saved and load_index(saved, Index)
            if index is None:
                index = _scan(file.fileno(), labels)
                if saved:
                    save_index(saved, index)
            return index
    except OSError as error:
        raise UserError(f"data.path={path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"data.path={path}: {error}; make or download it again") from None


def _scan(file: int, labels: bool) -> Index:
    keys: set[bytes] = set()
    images: dict[bytes, tuple[int, int, int]] = {}
    texts: dict[bytes, str] = {}
    for name, offset, size in members(file):
        folder, slash, base = name.rpartition(b"/")
        stem, ending = _NAME.fullmatch(base).groups()
        key, ending = folder + slash + stem, ending.lower()
        if not stem or not ending:
            continue
        keys.add(key)
        if ending in IMAGES:
            image = IMAGES.index(ending), offset, size
            before = images.setdefault(key, image)
            if before[0] == image[0] and before != image:
                raise ValueError(f"has two members '{name.decode(errors='replace')}'")
            images[key] = min(before, image)
        elif labels and ending in (b"cls", b"json"):
            if size > LONGEST_LABEL:
                raise ValueError(f"'{name.decode(errors='replace')}' is too long for a label")
            text = _label(name, ending, read_at(file, size, offset))
            if text is not None and (ending == b"cls" or key not in texts):
                texts[key] = text
    classes: dict[str, int] = {}
    numbers = [
        classes.setdefault(texts[key], len(classes)) if key in texts else -1 for key in images
    ]
    _, offsets, sizes = np.array(list(images.values()), np.int64).reshape(-1, 3).T.copy()
    names = PackedStrings.of(name.encode() for name in classes)
    skipped = np.array(len(keys) - len(images))
    return Index(
        PackedStrings.of(images), offsets, sizes, np.array(numbers, np.int32), names, skipped
    )


def _label(name: bytes, ending: bytes, content: bytes) -> str | None:
    """A label as text, numbers without leading zeros; None if it is missing or negative."""
    try:
        value = content.decode().strip() if ending == b"cls" else json.loads(content)
    except (ValueError, RecursionError):
        kind = "text" if ending == b"cls" else "JSON"
        raise ValueError(f"'{name.decode(errors='replace')}' is not {kind}") from None
    if isinstance(value, dict):
        value = next((v for k in LABELS if isinstance(v := value.get(k), int | str)), None)
    if not isinstance(value, int | str):
        return None
    text = str(value)
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return str(int(text)) if int(text) >= 0 else None
    return text or None


def expand(text: str) -> list[str]:
    """All paths or URLs that a pattern stands for, as a shell expands it.

    "{a,b}-{000..012}.tar" becomes 26 names; leading zeros are kept.
    Raises: UserError for braces that are neither a list nor a range.
    """
    parts = re.split(r"\{([^{}]*)\}", text)
    if any("{" in part or "}" in part for part in parts[::2]):
        raise UserError(f"data.path={text}: its braces do not pair up, or one is inside another")
    choices = [_choices(p, text) if n % 2 else [p] for n, p in enumerate(parts)]
    if math.prod(map(len, choices)) > MOST_NAMES:
        raise UserError(f"data.path={text}: stands for more than {MOST_NAMES:,} files")
    return ["".join(choice) for choice in itertools.product(*choices)]


def _choices(inside: str, text: str) -> list[str]:
    ends = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", inside)
    if ends:
        first, last = int(ends[1]), int(ends[2])
        padded = any(len(end) > 1 and end[0] == "0" for end in ends.groups())
        width = max(map(len, ends.groups())) if padded else 0
        step = 1 if last >= first else -1
        if abs(last - first) >= MOST_NAMES:
            raise UserError(f"data.path={text}: stands for more than {MOST_NAMES:,} files")
        return [str(n).zfill(width) for n in range(first, last + step, step)]
    if "," in inside:
        return inside.split(",")
    raise UserError(
        f"data.path={text}: {{{inside}}} is neither a list {{a,b}} nor a range {{000..012}}"
    )
