"""Numbers in the place of `auto`: measured once on the training images, and kept with the run."""

import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from selfsight import distributed, randomness
from selfsight.batch import Normalization
from selfsight.data.config import DataConfig
from selfsight.data.decode import decode
from selfsight.data.patience import Patience
from selfsight.data.source import BadImage, Source, decoding, levels
from selfsight.errors import UserError

MOST = 2_000  # images that mean and std are measured on
DIGITS = 6  # of a mean and a std, after the point
MEASURED = ("range", "mean", "std")  # keys that may be words in the place of numbers


def settled(config: DataConfig, train: Source) -> DataConfig:
    """The same keys with numbers: the range that the training images are decoded with, and their
    mean and std, where the keys say auto.

    Args:
        train: opened with `config`.
    Raises: UserError if none of its images can be decoded.
    """
    numbers: dict[str, Any] = {}
    if isinstance(config.range, str):
        numbers["range"] = decoding(train).range if levels(train) is None else None
    if "auto" in (config.mean, config.std):
        found = mean_and_std(train, config)._asdict()
        numbers |= {key: found[key] for key in found if getattr(config, key) == "auto"}
    return config.model_copy(update=numbers)


def recorded(config: DataConfig, described: dict[str, Any]) -> DataConfig:
    """The same keys with the numbers that a description of an encoder holds, where the keys say
    what to measure."""
    words = [key for key in MEASURED if isinstance(getattr(config, key), str)]
    held = {key: described[key] for key in words if isinstance(described.get(key), list)}
    return config.model_copy(update={key: tuple(value) for key, value in held.items()})


def mean_and_std(source: Source, config: DataConfig) -> Normalization:
    """Mean and standard deviation of each channel, of pixels in [0, 1].

    Of at most MOST images, drawn by coordinates; each counts as much as any other, whatever its
    size. Broken images are left out. The result depends on no number of threads.
    """
    patience = Patience.of(config)

    broken: list[BadImage] = []

    def moments(i: int) -> np.ndarray | None:
        try:
            return moments_of(decode(source, i, patience))
        except BadImage as error:
            broken.append(error)
            return None

    count = min(MOST, len(source))
    rows = randomness.shuffled(np.arange(count), len(source), randomness.SUBSET)
    with ThreadPoolExecutor(config.workers or distributed.cores(), "measure") as pool:
        found = list(pool.map(moments, rows.tolist()))
    if all(m is None for m in found):
        first = min(broken, key=lambda error: error.name)
        raise UserError(f"none of the images can be decoded: {first}")
    return normalization_of(found)


def moments_of(pixels: np.ndarray) -> np.ndarray:
    """(2, C) the mean of the values of an image, in [0, 1], and of their squares."""
    top = float(np.iinfo(pixels.dtype).max)
    flat = pixels.reshape(-1, pixels.shape[2])
    counts = [np.bincount(flat[:, c]) for c in range(flat.shape[1])]
    found = []
    for count in counts:  # of each level: sums of few numbers, in float64
        level = np.arange(len(count)) / top
        found.append([(count * level).sum(), (count * level**2).sum()])
    return np.array(found).T / len(flat)


def normalization_of(moments: Iterable[np.ndarray | None]) -> Normalization:
    """Mean and std over images, given the moments of each (None of a broken one) in order."""
    known = [m for m in moments if m is not None]
    first, second = (
        [math.fsum(m[k, c] for m in known) / len(known) for c in range(known[0].shape[1])]
        for k in (0, 1)
    )
    # of images of one value, which have no deviation, a level of 8 bits
    std = [max(math.sqrt(max(0.0, b - a * a)), 1 / 255) for a, b in zip(first, second, strict=True)]
    return Normalization(*(tuple(round(v, DIGITS) for v in values) for values in (first, std)))
