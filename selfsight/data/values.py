"""Values as a file stores them, and as training sees them: of 8 or 16 bits, in so many channels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from selfsight.batch import MOST_CHANNELS
from selfsight.data.source import Decoding

LUMA = (19595, 38470, 7471)  # / 2^16: the weights of ITU-R 601, as Pillow rounds them


class Values(NamedTuple):
    """The pixels of an image as they are stored.

    Attributes:
        array: (H, W, C) uint8, or numbers of more bits.
        window: (lowest, highest) value that the file itself says to show; None: it says none.
        inverted: the highest value is the darkest.
    """

    array: np.ndarray
    window: tuple[float, float] | None = None
    inverted: bool = False


def shown(stored: Sequence[Values], how: Decoding) -> np.ndarray:
    """(H, W, how.channels) uint8, or uint16 if how.bits is 16; several values are joined as bands.

    Raises: ValueError for values that `how` does not allow, or another number of channels.

    >>> shown([Values(np.full((1, 2, 1), 4095))], Decoding(range=(0, 4095)))[0, 0]
    array([255, 255, 255], dtype=uint8)
    """
    if not all(values.array.size for values in stored):
        raise ValueError("holds no pixels")
    sizes = {values.array.shape[:2] for values in stored}
    if len(sizes) > 1:
        found = " and ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise ValueError(f"its bands are of different sizes, {found} pixels; resize them to one")
    levels = [_levels(values, how) for values in stored]
    return _fitted(levels[0] if len(levels) == 1 else np.concatenate(levels, 2), how.channels)


def _levels(values: Values, how: Decoding) -> np.ndarray:
    """The range becomes all levels, in steps of equal size."""
    array, top = values.array, 2**how.bits - 1
    if array.dtype == np.uint8:
        return array if how.bits == 8 else array.astype(np.uint16) * 257
    low, high = _range(values, how)
    whole = array.dtype.kind != "f"
    if array.dtype == np.uint16 and top == high == 65535 and low == 0:
        levels = array
    else:
        step = (high - low + whole) / (top + 1)
        levels = np.empty(array.shape, np.uint8 if how.bits == 8 else np.uint16)
        for c in range(array.shape[2]):  # float64 of all channels would take much memory
            levels[..., c] = ((array[..., c].astype(np.float64) - low) // step).clip(0, top)
    return top - levels if values.inverted else levels


def _range(values: Values, how: Decoding) -> tuple[float, float]:
    """The range of an image: that of the configuration, of its file, or of the images found."""
    array = values.array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("some of its values are no finite numbers (NaN or infinite); replace them")
    if values.window is not None and (how.range is None or how.is_found):
        return values.window
    if how.range is None and array.dtype.kind == "f":
        raise ValueError(
            "pixels are floating-point numbers; give their range: data.range=[0, 1], or auto"
        )
    low, high = how.range or (0, 65535)
    least, most = array.min(), array.max()
    if how.is_found and not low <= least <= most <= high:
        raise ValueError(
            f"its values are {least} to {most}, those of the first images {low:g} to {high:g}; "
            f"give the range of all: data.range=[lowest, highest]"
        )
    return low, high


def _fitted(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Gray becomes RGB, and RGB gray; other numbers of channels must be the same."""
    found = pixels.shape[2]
    if found == channels:
        return pixels
    if (found, channels) == (1, 3):
        return np.repeat(pixels, 3, 2)
    if (found, channels) == (3, 1):
        luma = (pixels.astype(np.uint32) * np.array(LUMA, np.uint32)).sum(2, dtype=np.uint32)
        return (luma + 2**15 >> 16).astype(pixels.dtype)[..., None]
    raise OtherChannels(found, channels)


class OtherChannels(ValueError):
    """An image has another number of channels than data.channels."""

    def __init__(self, found: int, channels: int) -> None:
        self.found = found
        has = "has one channel" if found == 1 else f"has {found} channels"
        if found == 4 and channels in (1, 3):
            has += ", and the fourth is not transparency"
        remedy = f"all images must have data.channels={channels}: set data.channels={found} if all "
        remedy += "are like this one, or remove it"
        if found > MOST_CHANNELS:
            remedy = f"at most {MOST_CHANNELS} can be read"
        super().__init__(f"{has}; {remedy}")


def over_white(array: np.ndarray) -> np.ndarray:
    """(H, W, C) of (H, W, C + 1) unsigned values: a pixel becomes white where the last channel, its
    transparency, is 0."""
    top = np.iinfo(array.dtype).max
    alpha = array[..., -1:] / top
    return np.rint(array[..., :-1] * alpha + top * (1 - alpha)).astype(array.dtype)
