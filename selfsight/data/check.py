"""`selfsight check`: read and decode every image of a source once, and report what is wrong."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np

from selfsight import distributed
from selfsight.data.config import DataConfig, several
from selfsight.data.decode import decoded, read
from selfsight.data.labels import draw_part
from selfsight.data.levels import deep_values
from selfsight.data.measure import moments_of
from selfsight.data.pack.read import DESCRIPTION, verify
from selfsight.data.patience import Patience
from selfsight.data.source import (
    BadImage,
    Source,
    Subset,
    Watch,
    content_hash,
    decoding,
    made_from,
)
from selfsight.data.sources.kinds import folders_in
from selfsight.data.sources.open import open_source, with_range

BLOCK = 64  # images of one task of a thread


@dataclass
class Split:
    """What was found in one split.

    Attributes:
        name: "train" or "test".
        whole: the split; source: the images of it that were looked at.
        sizes: (N, 2) height and width of each image in pixels; 0 of an undecodable one.
        contents: (N, 16) uint8, the content hash of each image; 0 of one that cannot be read.
        kinds: (type of number, channels) -> how many images have such values.
        least, most: of the values of all images, as they are stored; None without an image.
        moments: of each image what `measure.moments_of` finds; None of a broken one.
        broken: (name, reason) of each image that cannot be read or decoded.
        twins: groups of indices of images that are equal byte for byte.
    """

    name: str
    whole: Source
    source: Source
    sizes: np.ndarray
    contents: np.ndarray
    kinds: Counter[tuple[str, int]] = field(default_factory=Counter)
    least: float | None = None
    most: float | None = None
    moments: list[np.ndarray | None] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)
    twins: list[list[int]] = field(default_factory=list)

    def add(self, values: np.ndarray) -> None:
        """Count an image with these values (H, W, C)."""
        self.kinds[values.dtype.name, values.shape[2]] += 1
        ends = values.min().item(), values.max().item()
        self.least = ends[0] if self.least is None else min(self.least, ends[0])
        self.most = ends[1] if self.most is None else max(self.most, ends[1])

    def counts(self) -> list[tuple[str, int]]:
        """(name, number of images) of every class."""
        if self.whole.classes is None:
            return []
        number = np.bincount(self.whole.labels, minlength=len(self.whole.classes))
        return list(zip(self.whole.classes, number.tolist(), strict=True))


@dataclass
class Report:
    """What was found in both splits.

    Attributes:
        shared: pairs (name of a test image, name of an equal training image).
        damaged: a line for each file or image of a pack whose checksum is wrong.
    """

    splits: list[Split]
    shared: list[tuple[str, str]]
    damaged: list[str]

    @property
    def problems(self) -> int:
        """Undecodable images, groups of equal images, shared images and damaged files, in all."""
        found = sum(len(split.broken) + len(split.twins) for split in self.splits)
        return found + len(self.shared) + len(self.damaged)


def check(config: DataConfig, watch: Watch, most: int | None = None) -> Report:
    """Read and decode all images of both splits.

    Args:
        most: look at no more images of a split than this, drawn by coordinates; checksums of packs
            are then not compared.
    Raises: UserError if the source cannot be opened.
    """
    found = []
    with ThreadPoolExecutor(config.workers or distributed.cores(), "check") as pool:
        for name in ("train", "test"):
            source = open_source(config, name)
            if source is not None:
                config, patience = with_range(config, source), Patience.of(config)
                part = _part(source, most or len(source))
                found.append(_check_split(name, source, part, pool, watch, patience))
        packs = _packs(config) if most is None else []
        damaged = [line for folder in packs for line in verify(folder, pool)]
    return Report(found, _shared(*found) if len(found) == 2 else [], damaged)


def _part(source: Source, most: int) -> Source:
    """The source, or `most` of its images."""
    if len(source) <= most:
        return source
    return Subset(source, draw_part(source.labels, len(source), most))


def _packs(config: DataConfig) -> list[Path]:
    """The finished packs among the source's paths and the folders directly in them."""
    paths = [Path(path).expanduser() for path in several(config.path) + several(config.test_path)]
    folders = [f for path in paths if path.is_dir() for f in (path, *sorted(folders_in(path)))]
    return [f for f in folders if (f / DESCRIPTION).is_file() and not f.name.startswith(".")]


def _check_split(
    name: str,
    whole: Source,
    source: Source,
    pool: ThreadPoolExecutor,
    watch: Watch,
    patience: Patience,
) -> Split:
    n = len(source)
    split = Split(name, whole, source, np.zeros((n, 2), np.int32), np.zeros((n, 16), np.uint8))
    split.moments, lock = [None] * n, Lock()
    # What is reported are the values as they are stored: with a range that is given, and not found,
    # colours of 16 bits are read with all bits, and no value is refused for being outside of it
    # (`is_found`). The pixels themselves are decoded as in training, which does refuse.
    whole = decoding(source)._replace(range=(0, 65535), is_found=False)

    def block(start: int) -> list[tuple[str, str]]:
        broken = []
        for i in range(start, min(start + BLOCK, n)):
            try:
                data = read(source, i, patience)
                split.contents[i] = np.frombuffer(content_hash(data), np.uint8)
                pixels = decoded(source, i, data, patience)
                split.sizes[i], split.moments[i] = pixels.shape[:2], moments_of(pixels)
                deep = deep_values(data, whole)
                with lock:
                    split.add(np.concatenate([v.array for v in deep], 2) if deep else pixels)
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
    """Groups of two or more equal images; those that could not be read are left out."""
    groups: dict[bytes, list[int]] = {}
    for i, value in enumerate(contents):
        if value.any():
            groups.setdefault(value.tobytes(), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _shared(train: Split, test: Split) -> list[tuple[str, str]]:
    """Report.shared. Images of a pack count as equal if the images they were made from were."""
    trained, tested = (made_from(split.source, split.contents) for split in (train, test))
    index = {row.tobytes(): i for i, row in enumerate(trained) if row.any()}
    pairs = ((i, index[key]) for i, row in enumerate(tested) if (key := row.tobytes()) in index)
    return [(test.source.name(i), train.source.name(other)) for i, other in pairs]
