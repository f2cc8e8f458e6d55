"""What is in a source, and what is wrong with it: every image is read and decoded once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from selfsight import distributed
from selfsight.data.decode import decoded, read
from selfsight.data.pack.read import DESCRIPTION, verify
from selfsight.data.source import BadImage, Source, content_hash, made_from
from selfsight.data.sources.open import DataConfig, folders_in, open_source, several

BLOCK = 64  # images that a thread takes at a time

Watch = Callable[[str, int, int], None]


@dataclass
class Split:
    """What was found in one split.

    Attributes:
        source: the split; sizes: (N, 2) height and width of each image, 0 of a broken one.
        contents: (N,) 16 bytes each, a hash of the file or, of an array, of its pixels.
        broken: name and reason of images that cannot be used.
        twins: groups of images that are the same byte for byte.
    """

    name: str
    source: Source
    sizes: np.ndarray
    contents: np.ndarray
    broken: list[tuple[str, str]] = field(default_factory=list)
    twins: list[list[int]] = field(default_factory=list)

    def counts(self) -> list[tuple[str, int]]:
        """(class, images) of every class."""
        if self.source.classes is None:
            return []
        number = np.bincount(self.source.labels, minlength=len(self.source.classes))
        return list(zip(self.source.classes, number.tolist(), strict=True))


@dataclass
class Report:
    """Both splits.

    Attributes:
        shared: (a test image, the same image among the training images), byte for byte.
        damaged: what of a pack is not as it was packed.
    """

    splits: list[Split]
    shared: list[tuple[str, str]]
    damaged: list[str]

    @property
    def problems(self) -> int:
        """How many things are wrong."""
        found = sum(len(split.broken) + len(split.twins) for split in self.splits)
        return found + len(self.shared) + len(self.damaged)


def check(config: DataConfig, watch: Watch) -> Report:
    """Read all of a source.

    Args:
        watch: takes what is being done, the images done, and all of them.
    Raises: UserError if the source cannot be opened at all.
    """
    found = []
    with ThreadPoolExecutor(config.workers or distributed.cores(), "check") as pool:
        for name in ("train", "test"):
            source = open_source(config, name)
            if source is not None:
                found.append(_check_split(name, source, pool, watch))
        damaged = [line for folder in _packs(config) for line in verify(folder, pool)]
    return Report(found, _shared(*found) if len(found) == 2 else [], damaged)


def _packs(config: DataConfig) -> list[Path]:
    """The finished packs that the source's paths are or hold."""
    paths = (*several(config.path), *several(config.test_path))
    given = (Path(path).expanduser() for path in paths)
    places = [p for place in given if place.is_dir() for p in (place, *sorted(folders_in(place)))]
    return [p for p in places if (p / DESCRIPTION).is_file() and not p.name.startswith(".")]


def _check_split(name: str, source: Source, pool: ThreadPoolExecutor, watch: Watch) -> Split:
    n = len(source)
    split = Split(name, source, np.zeros((n, 2), np.int32), np.zeros((n, 16), np.uint8))

    def block(start: int) -> list[tuple[str, str]]:
        broken = []
        for i in range(start, min(start + BLOCK, n)):
            try:
                data = read(source, i)
                split.contents[i] = np.frombuffer(content_hash(data), np.uint8)
                split.sizes[i] = decoded(source, i, data).shape[:2]
            except BadImage as error:
                broken.append((error.name, error.reason))
        return broken

    starts = range(0, n, BLOCK)
    for start, broken in zip(starts, pool.map(block, starts), strict=True):
        split.broken += broken
        watch(f"checking {name}", min(start + BLOCK, n), n)
    split.twins = _twins(split.contents)
    return split


def _twins(contents: np.ndarray) -> list[list[int]]:
    """Groups of equal images; images that could not even be read are in none."""
    groups: dict[bytes, list[int]] = {}
    for i, value in enumerate(contents):
        if value.any():
            groups.setdefault(value.tobytes(), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _shared(train: Split, test: Split) -> list[tuple[str, str]]:
    """Pairs of names; images of a pack are compared as they were before."""
    before, after = (made_from(split.source, split.contents) for split in (train, test))
    places = {row.tobytes(): i for i, row in enumerate(before) if row.any()}
    pairs = ((i, places[key]) for i, row in enumerate(after) if (key := row.tobytes()) in places)
    return [(test.source.name(i), train.source.name(other)) for i, other in pairs]
