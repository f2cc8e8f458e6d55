"""Readers of image files that Pillow does not read, or not with all their bits and channels.

Each takes the content of a file and returns its `Values`. On damaged files they raise what their
libraries raise; `decode` makes a message of it. Libraries that are extras are imported here, when a
file needs them.
"""

import functools
import importlib
import io
import logging
import math
import struct
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from selfsight.data.source import Decoding
from selfsight.data.values import OtherChannels, Values, over_white

DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # Pillow's modes of more than 8 bits
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # first bytes of a file; the last two: BigTIFF
NPY, PNG, BANDS = b"\x93NUMPY", b"\x89PNG\r\n\x1a\n", b"\x93SELFSIGHT BANDS\n"
DICOM, PREAMBLE = b"DICM", 128  # and the bytes before it
HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Tags of TIFF: size of a sample in bits, what the colours are, samples of a pixel, which of them
# are transparency (1 and 2), kind of number (1: unsigned).
BITS, COLOURS, SAMPLES, EXTRA, NUMBERS = 258, 262, 277, 338, 339
ORIENTATION = 0x0112  # the EXIF tag
MOST_HEADER = 10_000  # bytes of an .npy header
# They warn of what is unusual in a file; what cannot be decoded raises an exception.
warnings.filterwarnings("ignore", module=r"pydicom\b")
UPRIGHT = {  # EXIF orientation -> what makes the image upright
    2: np.fliplr,
    3: functools.partial(np.rot90, k=2),
    4: np.flipud,
    5: functools.partial(np.swapaxes, axis1=0, axis2=1),
    6: functools.partial(np.rot90, k=3),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


def limit(width: int, height: int, how: Decoding) -> None:
    """Raises: ValueError for more pixels than data.max_pixels allows."""
    if width * height > how.max_pixels:
        raise ValueError(
            f"{width} x {height} pixels, taken for a decompression bomb; data.max_pixels="
            f"{width * height} allows it"
        )


def keeps_high_bytes(how: Decoding) -> bool:
    """Whether colours of 16 bits become 8 as they always did: by their high byte."""
    return how.bits == 8 and (how.range is None or how.is_found)


class MissingLibrary(ValueError):
    """A file needs an optional library."""


def library(name: str, extra: str) -> Any:
    """An optional library. Raises: MissingLibrary that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingLibrary(f"needs {name}: pip install 'selfsight[{extra}]'") from None


# Several files of one image -----------------------------------------------------------------------


def joined(files: Sequence[bytes]) -> bytes:
    """The files of an image's bands as one."""
    lengths = struct.pack(f"<I{len(files)}Q", len(files), *map(len, files))
    return b"".join([BANDS, lengths, *files])


def parts(data: bytes) -> Iterator[bytes]:
    """The files that were joined. Raises: ValueError if they are not whole."""
    start = len(BANDS)
    (count,) = struct.unpack_from("<I", data, start)
    lengths = struct.unpack_from(f"<{min(count, len(data))}Q", data, start + 4)
    start += 4 + 8 * count
    for length in lengths:
        yield data[start : start + length]
        start += length


# TIFF ---------------------------------------------------------------------------------------------


def tiff(data: bytes, how: Decoding) -> Values | None:
    """None: Pillow reads it as well."""
    if _pillow_reads(data, how):
        return None
    tifffile = library("tifffile", "tiff")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # damage raises an exception
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first = file.pages[0]
        # one picture, or bands of which each may be a page
        image = first if how.channels in (1, 3) else file.series[0]
        axes, shape = _without_ones(image.axes, image.shape)
        if 0 in shape:
            raise ValueError("holds no pixels")
        limit(first.imagewidth, first.imagelength, how)
        if first.is_tiled:
            limit(first.tilewidth, first.tilelength, how)
        if len(axes) > 3 or "YX" not in axes:
            raise ValueError(f"has the axes {image.axes}; height, width and channels can be read")
        bands = next((n for a, n in zip(axes, shape, strict=True) if a not in "YX"), 1)
        clear = not {1, 2}.isdisjoint(getattr(first, "extrasamples", ()))
        if bands != how.channels and not _converts(bands, how.channels, clear):
            raise OtherChannels(bands, how.channels)
        for page in [first] if image is first else image.pages:
            _check_parts(page, len(data))
        array = image.asarray(maxworkers=1).reshape(shape)
        if len(axes) == 3 and axes[-1] in "YX":
            array = np.moveaxis(array, 0, 2)
        array = array[..., None] if array.ndim == 2 else array
        if first.photometric == 0 and array.dtype.kind == "u":  # white is zero
            array = np.iinfo(array.dtype).max - array
        turn = UPRIGHT.get(getattr(first.tags.get("Orientation"), "value", 1))
    if clear and bands != how.channels:
        array = over_white(array)
    return Values(_numbers(array if turn is None else turn(array)))


def _check_parts(page: Any, size: int) -> None:
    """The strips or tiles of a page are all there: tifffile would fill others with 0.

    Args:
        size: of the file in bytes.
    Raises: ValueError if some are not named, or end after the file.
    """
    starts, lengths, count = page.dataoffsets, page.databytecounts, math.prod(page.chunked)
    if not len(starts) == len(lengths) == count:
        raise ValueError(
            f"damaged (of {count} parts, the places of {len(starts)} and the lengths of "
            f"{len(lengths)} are known)"
        )
    if max(map(sum, zip(starts, lengths, strict=True)), default=0) > size:
        raise ValueError("truncated (its pixels end after the file)")


def _without_ones(axes: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Without axes of length 1, but for height and width."""
    kept = [(a, n) for a, n in zip(axes, shape, strict=True) if n != 1 or a in "YX"]
    return "".join(a for a, _ in kept), tuple(n for _, n in kept)


def _converts(bands: int, channels: int, clear: bool) -> bool:
    """Whether so many bands can become these channels: gray and RGB, with transparency or not."""
    return channels in (1, 3) and bands - clear in (1, 3)


def _pillow_reads(data: bytes, how: Decoding) -> bool:
    """Whether Pillow gives all channels and bits that are asked for."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode, tags, get = image.mode, image.tag_v2, image.tag_v2.get
            single = how.channels in (1, 3) or image.n_frames == 1
    except UnidentifiedImageError:
        return False
    samples, bits = get(SAMPLES, 1), max(tags.get(BITS, (1,)))
    clear = not {1, 2}.isdisjoint(get(EXTRA, ()))
    if how.channels in (1, 3) and (samples > 4 or (get(COLOURS) == 2 and samples - clear > 3)):
        raise OtherChannels(samples, how.channels)
    if mode in DEEP:
        return single and not (mode == "I" and bits == 32 and get(NUMBERS, (1,))[0] == 1)
    exact = bits <= 8 or keeps_high_bytes(how)
    return exact and (single if samples == 1 else how.channels in (1, 3))


# Others -------------------------------------------------------------------------------------------


def npy(data: bytes, how: Decoding) -> Values:
    """A NumPy file of one image: (H, W), (H, W, C), or (C, H, W) if that is `how.channels`."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"is an .npy file of version {version}; 1.0 and 2.0 can be read")
    shape, fortran, kind = readers[version](file, max_header_size=MOST_HEADER)
    if kind.hasobject or kind.kind not in "buif":
        raise ValueError(f"holds {kind}, not numbers; objects of Python are never loaded")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(
            f"has the shape {shape}; an image is (H, W) or (H, W, channels). A file of several "
            f"images is a data.path by itself"
        )
    first = len(shape) == 3 and channels_first(shape, how.channels)
    limit(*(shape[1:][::-1] if first else shape[1::-1]), how)
    if len(shape) == 3 and not first and shape[2] not in (1, 3, how.channels):
        raise OtherChannels(shape[2], how.channels)
    count = int(np.prod(shape, dtype=object))
    if len(data) - file.tell() < count * kind.itemsize:
        raise ValueError(f"truncated ({len(data):,} bytes do not hold {shape} {kind})")
    array = np.frombuffer(data, kind, count, file.tell())
    array = array.reshape(shape, order="F" if fortran else "C")
    return Values(_numbers(as_image(array, how.channels)))


def as_image(array: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, C) of (H, W), (H, W, C), or (C, H, W) where the first axis alone is `channels`."""
    if array.ndim == 2:
        return array[..., None]
    return array.transpose(1, 2, 0) if channels_first(array.shape, channels) else array


def channels_first(shape: tuple[int, ...], channels: int) -> bool:
    """Whether an image of three axes is (C, H, W): (H, W, C) wherever it can be."""
    usual = {channels, 1, 3} if channels in (1, 3) else {channels}
    return shape[0] == channels and shape[2] not in usual


def _numbers(array: np.ndarray) -> np.ndarray:
    """Truth values as 0 and 255; numbers in the machine's byte order."""
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def png16(data: bytes, how: Decoding) -> Values | None:
    """A PNG file with 16 bits a colour, of which Pillow keeps 8; None: it is another."""
    width, height, bits, colours = struct.unpack_from(">IIBB", data, 16)
    if bits != 16 or colours not in (2, 4, 6) or keeps_high_bytes(how):
        return None
    limit(width, height, how)
    array = library("imagecodecs", "tiff").png_decode(data)
    if b"eXIf" in data:
        with Image.open(io.BytesIO(data)) as image:
            array = UPRIGHT.get(image.getexif().get(ORIENTATION), np.asarray)(array)
    clear = array.shape[2] in (2, 4) and array.shape[2] != how.channels
    return Values(over_white(array) if clear else array)


def dicom(data: bytes, how: Decoding) -> Values:
    """One frame of a DICOM file: rescaled, with the window that it says, MONOCHROME1 inverted."""
    pydicom = library("pydicom", "dicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    with io.BytesIO(data) as file:
        about = pydicom.dcmread(file)
    limit(int(about.Columns), int(about.Rows), how)
    frames = int(about.get("NumberOfFrames", None) or 1)
    if frames > 1:
        raise ValueError(f"has {frames} frames; save each as a file")
    array, window = about.pixel_array, _window(about)
    inverted = about.PhotometricInterpretation == "MONOCHROME1"
    if about.PhotometricInterpretation == "PALETTE COLOR":
        array = pydicom.pixels.apply_color_lut(array, about)
    if array.ndim == 3:
        return Values(array)
    slope = float(about.get("RescaleSlope", 1))
    intercept = float(about.get("RescaleIntercept", 0))
    if (slope, intercept, window) == (1, 0, None) and array.dtype == np.uint8:
        return Values(np.asarray(255 - array if inverted else array)[..., None])
    if slope.is_integer() and intercept.is_integer():  # numbers that stay whole
        array = array.astype(np.int64) * int(slope) + int(intercept)
    else:
        array = array * slope + intercept
    return Values(array[..., None], window, inverted)


def _window(about: Any) -> tuple[float, float] | None:
    """(lowest, highest) value of a DICOM's first window (PS3.3, C.11.2.1.2)."""
    center, width = (about.get(f"Window{key}") for key in ("Center", "Width"))
    if center is None or width is None:
        return None
    center, width = (float(v[0] if isinstance(v, Sequence) else v) for v in (center, width))
    if width <= 1:
        return None
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


@functools.cache
def add_heif() -> None:
    """Let Pillow read HEIC files. Raises: ValueError that says what to install."""
    library("pillow_heif", "heif").register_heif_opener()
