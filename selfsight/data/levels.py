"""The range of values in images of more than 8 bits: of 12 bits stored in 16, say."""

import contextlib
import io
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from selfsight.data.decode import JPEG, USUAL, stored
from selfsight.data.formats import (
    BANDS,
    BITS,
    DEEP,
    DICOM,
    NPY,
    PNG,
    PREAMBLE,
    TIFF,
    MissingLibrary,
)
from selfsight.data.source import Decoding, Source
from selfsight.data.values import Values
from selfsight.errors import UserError

SAMPLE = 32  # images that are looked at, evenly spread over the source
SAMPLE_AUTO = 256  # for data.range=auto
VALUES = 2**16  # of an image, for the percentiles
DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits that cameras and scanners use
USED = (0.1, 99.9)  # percentiles between which the values in use are: others may be faulty pixels
FEWEST = 64  # levels that the values in use should have

Range = tuple[float, float]
Asked = Literal["full", "auto"] | Range | None  # data.range


class Survey(NamedTuple):
    """The values of more than 8 bits in some images.

    Attributes:
        least, most: of all values.
        low, high: the percentiles USED.
        kind: the type of number that can hold the values of all images.
    """

    least: float
    most: float
    low: float
    high: float
    kind: np.dtype


class _Pool:
    """Gathers the values of images for a survey."""

    def __init__(self) -> None:
        self._ends: list[float] = []
        self._some: list[np.ndarray] = []
        self._kinds: set[np.dtype] = set()

    def add(self, array: np.ndarray) -> None:
        """Values (H, W, C)."""
        self._kinds.add(array.dtype)
        pixels = array.reshape(-1, array.shape[-1])
        part = pixels[:: max(1, pixels.size // VALUES)].ravel()
        if array.dtype.kind == "f":
            pixels, part = pixels[np.isfinite(pixels)], part[np.isfinite(part)]
        if part.size:
            self._ends += [pixels.min(), pixels.max()]
            self._some.append(part)

    def survey(self) -> Survey | None:
        if not self._ends:
            return None
        low, high = np.percentile(np.concatenate(self._some), USED).tolist()
        return Survey(min(self._ends), max(self._ends), low, high, np.result_type(*self._kinds))


def survey(
    source: Source, *hows: Decoding, count: int = SAMPLE, floats: bool = True
) -> list[Survey | None]:
    """Look at some images, each once; for each decoding the values of more than 8 bits in those
    images where no decoding before it gave any, or None if there are none.

    Args:
        floats: also at images whose values are floating-point numbers.
    """
    pools = [_Pool() for _ in hows]
    for i in sorted({round(place) for place in np.linspace(0, len(source) - 1, count)}):
        place, found = _looked_at(source, i, hows)
        how = hows[place]
        for array, window, _ in found:
            shows_itself = window is not None and (how.range is None or how.is_found)
            if not shows_itself and array.dtype.kind in ("iuf" if floats else "iu"):
                pools[place].add(array)
    return [pool.survey() for pool in pools]


def found_range(source: Source) -> tuple[int, int] | None:
    """(lowest, highest) value that the bits allow which some images use; None if these have 8 bits.

    Of 12 bits stored in 16 (0, 4095), of signed values (-2^k, 2^k - 1).
    """
    (found,) = survey(source, USUAL, floats=False)
    return None if found is None else _by_bits(found)


def _by_bits(found: Survey) -> tuple[int, int]:
    least, most = min(0, int(found.least)), max(-1, int(found.most))
    bits = max(most.bit_length(), (-least - 1).bit_length() if least else 0)
    depth = next(depth for depth in DEPTHS if depth >= bits)
    return (-(2**depth) if least < 0 else 0, 2**depth - 1)


def choose_range(asked: Asked, source: Source, how: Decoding) -> tuple[Range | None, list[str]]:
    """The range that training images are decoded with, and what a user should know about it.

    Args:
        asked: the key data.range.
        how: the other keys.
    Raises: UserError for a range that images have none of.
    """
    if asked is None:
        whole = how._replace(range=(0, 65535))
        found, colours = survey(source, how, whole, floats=False)
        # of colours of 16 bits the high bytes are used
        about = [] if colours is None else _few(colours, whole, asked)
        if found is None:
            return None, about
        chosen = _by_bits(found)
        how = how._replace(range=chosen)
        return chosen, [describe_range(chosen, how.bits), *_few(found, how, asked), *about]
    probe = how._replace(range=(0, 65535) if isinstance(asked, str) else asked)
    (found,) = survey(source, probe, count=SAMPLE_AUTO if asked == "auto" else SAMPLE)
    if isinstance(asked, tuple):
        return asked, [] if found is None else _few(found, probe, asked)
    if found is None:  # none of more than 8 bits: for those that may come
        return (0, 65535), []
    if asked == "full":
        chosen = _full(found)
        return chosen, _few(found, how._replace(range=chosen), asked)
    chosen = _used(found)
    top = 2**how.bits - 1
    return chosen, [
        f"Images of more than 8 bits: the values {chosen[0]:g} to {chosen[1]:g}, measured on the "
        f"training images by data.range=auto, become 0 to {top}; values beyond them are cut off"
    ]


def _used(found: Survey) -> Range:
    """The values in use; whole numbers if the values are."""
    if found.kind.kind == "f":
        low, high = (float(f"{value:.6g}") for value in (found.low, found.high))
        return (low, high) if low < high else (low, low + 1)
    low, high = int(np.floor(found.low)), int(np.ceil(found.high))
    return (low, high) if low < high else (low, low + 1)


def _full(found: Survey) -> Range:
    """All values of 16 bits, of 8 or 32 where the images have those."""
    if found.kind.kind == "f":
        raise UserError(
            "data.range=full: floating-point numbers have no full range; set data.range=auto or "
            "[lowest, highest]"
        )
    kinds = [np.uint16, np.int16, np.uint32, np.int32, np.int64]
    if found.kind.itemsize == 1:
        kinds.insert(0, np.int8)
    limits = (np.iinfo(kind) for kind in kinds)
    return next((k.min, k.max) for k in limits if k.min <= found.least <= found.most <= k.max)


def _few(found: Survey, how: Decoding, asked: Asked) -> list[str]:
    """A line if the values in use get few levels."""
    low, high = how.range
    levels, whole = 2**how.bits, found.kind.kind != "f"
    inside = min(found.high, high) - max(found.low, low)
    used = round(max(0.0, (inside + whole) / (high - low + whole) * levels))
    if used >= min(FEWEST, found.high - found.low + 1 if whole else FEWEST):
        return []
    shown = asked if isinstance(asked, str) else f"[{low:g}, {high:g}]"
    key = "" if asked is None else f"data.range={shown}: "
    return [
        f"{key}the images' values, {found.low:g} to {found.high:g}, use only {used} of {levels} "
        f"levels, since {low:g} to {high:g} become 0 to {levels - 1}; data.range=auto uses all"
    ]


def _looked_at(source: Source, i: int, hows: Sequence[Decoding]) -> tuple[int, list[Values]]:
    """The place of the first decoding that gives image i more than 8 bits, and the values."""
    if source.name(i).lower().endswith((".jpg", ".jpeg")):
        return 0, []
    # On damaged files decoders raise more kinds of exceptions than their documentation lists; such
    # an image is noted where it is used.
    with contextlib.suppress(Exception):
        data = source.read(i)
        for place, how in enumerate(hows):
            try:
                found = deep_values(data, how)
            except MissingLibrary:  # what Pillow gives instead are the high bytes
                found = [Values(v.array.astype(np.uint16) << 8) for v in stored(data, hows[0])]
            if found:
                return place, found
    return 0, []


def deep_values(data: bytes | np.ndarray, how: Decoding) -> list[Values]:
    """The values of an image, if they have more than 8 bits. Raises: any exception."""
    if isinstance(data, np.ndarray):
        found = [Values(data)]
    else:
        found = stored(data, how) if _may_be_deep(data) else []
    return [values for values in found if values.array.dtype != np.uint8]


def _may_be_deep(data: bytes) -> bool:
    """Whether a file may have more than 8 bits; its pixels are not decoded."""
    if data.startswith(JPEG):
        return False
    if data.startswith((NPY, BANDS)) or data[PREAMBLE:].startswith(DICOM):
        return True
    if data.startswith(PNG):
        return data[24:25] == b"\x10"
    tiff = data.startswith(TIFF)
    try:
        with Image.open(io.BytesIO(data)) as image:
            deep = image.mode in DEEP
            return deep or (tiff and max(image.tag_v2.get(BITS, (1,))) > 8)
    except UnidentifiedImageError:  # TIFF of so many bands, for one
        return tiff


def describe_range(found: tuple[int, int], bits: int = 8) -> str:
    """A line that says what is done with such images."""
    low, high = found
    has = (high - low).bit_length()
    return (
        f"Images of more than 8 bits: the values {low} to {high} ({has} bits) become 0 to "
        f"{2**bits - 1}; data.range=[lowest, highest] sets another range"
    )
