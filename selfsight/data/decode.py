"""Decode the bytes of one image file to uint8 RGB pixels.

The result is an upright (H, W, 3) array, or BadImage is raised; no file raises anything else. An
error of the machine, such as a lost disk, is no fault of a file: it is waited for (see `Patience`).
"""

import contextlib
import io
import warnings
from functools import partial

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from selfsight.data.patience import Patience
from selfsight.data.source import BadImage, Decoding, Source, decoding, first_line

Image.MAX_IMAGE_PIXELS = None  # data.max_pixels is the limit, tested before pixels are decoded
JPEG = b"\xff\xd8\xff"  # first bytes of a JPEG file
ORIENTATION = 0x0112  # the EXIF tag
EXTRA_SAMPLES = 338  # the TIFF tag that says what further bands are; 1 and 2: transparency
DEEP = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # Pillow's modes of more than 8 bits
USUAL = Decoding()
# EXIF orientation -> what makes the image upright.
_UPRIGHT = {
    2: np.fliplr,
    3: partial(np.rot90, k=2),
    4: np.flipud,
    5: partial(np.swapaxes, axis1=0, axis2=1),
    6: partial(np.rot90, k=3),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}

# Pillow warns of damaged metadata, which is ignored here, and of large images, which are refused.
warnings.filterwarnings("ignore", module=r"PIL\b")


def decode(source: Source, i: int, patience: Patience | None = None) -> np.ndarray:
    """Image i as uint8 (H, W, 3): turned upright by its EXIF orientation, converted to RGB.

    Raises: BadImage if it cannot be read or decoded; UserError if the machine cannot read.
    """
    return decoded(source, i, read(source, i, patience), patience)


def read(source: Source, i: int, patience: Patience | None = None) -> bytes | np.ndarray:
    """Image i as the source stores it. Raises: as `decode`."""
    try:
        return source.read(i)
    except (OSError, MemoryError):  # tried again below, which costs reads that succeed nothing
        pass
    try:
        return (patience or Patience()).wait_for(lambda: source.read(i), source.name(i))
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise BadImage(source.name(i), reason) from None


def decoded(
    source: Source, i: int, data: bytes | np.ndarray, patience: Patience | None = None
) -> np.ndarray:
    """The same as `decode`, given what `read` returned."""
    if isinstance(data, np.ndarray):
        return data
    name, how = source.name(i), decoding(source)
    try:
        return decode_bytes(data, name, how)
    except MemoryError:
        return (patience or Patience()).wait_for(lambda: decode_bytes(data, name, how), name)


def decode_bytes(data: bytes, name: str, how: Decoding = USUAL) -> np.ndarray:
    """As `decode`, of the content of an image file; `name` is what an error calls it. Raises:
    MemoryError besides, which says nothing of the image."""
    try:
        pixels = _decode_jpeg(data, how) if data.startswith(JPEG) else None
        return _decode_other(data, how) if pixels is None else pixels
    except MemoryError:
        raise
    # On damaged files decoders raise more kinds of exceptions than their documentation lists.
    except Exception as error:
        raise BadImage(name, _reason(data, error)) from None


def _decode_other(data: bytes, how: Decoding) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        _limit(image.width, image.height, how)
        return np.array(to_rgb(image, how))


def _limit(width: int, height: int, how: Decoding) -> None:
    if width * height > how.max_pixels:
        raise ValueError(
            f"{width} x {height} pixels, taken for a decompression bomb; data.max_pixels="
            f"{width * height} allows it"
        )


def _decode_jpeg(data: bytes, how: Decoding) -> np.ndarray | None:
    """Decode with libjpeg-turbo: the pixels of Pillow in a third of its time.

    Returns None for files that Pillow has to decode.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space in ("CMYK", "YCCK"):
            return None
        _limit(width, height, how)
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    except (KeyError, ValueError) as error:  # KeyError: the header is cut in the middle
        if "remature end" in str(error) or "max_pixels" in str(error):
            raise  # Pillow would fill missing pixels with gray
        return None  # Pillow decides whether the file is damaged, and says why
    turn = _UPRIGHT.get(orientation(data))
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def orientation(data: bytes) -> int:
    """The EXIF orientation, 1 to 8, of a JPEG file; 1 (upright) if it has none."""
    place = 2
    while data[place : place + 1] == b"\xff":
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            exif = Image.Exif()
            try:
                exif.load(data[place + 4 : place + 2 + length])
                return exif.get(ORIENTATION, 1)
            except Exception:  # the metadata is damaged; the pixels may be good
                return 1
        if marker == 0xDA or length < 2:  # the pixel data begins: no header follows
            break
        place += 2 + length
    return 1


def to_rgb(image: Image.Image, how: Decoding = USUAL) -> Image.Image:
    """An upright RGB image; transparent pixels become white, more than 8 bits become 8.

    Raises: ValueError for pixels that are floating-point numbers without `how.range`, or for values
        outside a range that `how` says to be strict.
    """
    image.load()
    transparent = _declares_alpha(image)
    with contextlib.suppress(Exception):  # damaged metadata does not matter
        if image.getexif().get(ORIENTATION, 1) != 1:  # else it would be a copy, of much memory
            image = ImageOps.exif_transpose(image)
    if image.mode in DEEP:
        return Image.fromarray(_eight_bits(np.asarray(image), how)).convert("RGB")
    if transparent:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
        del white  # of a large image, each copy counts
    elif image.mode == "RGBA":  # the fourth band is something else, such as infrared
        image = Image.merge("RGB", image.split()[:3])
    return image.convert("RGB")


def _declares_alpha(image: Image.Image) -> bool:
    """Whether a band is transparency: a TIFF file says of a fourth band what it is."""
    if getattr(image, "format", None) == "TIFF" and "A" in image.getbands():
        return not {1, 2}.isdisjoint(image.tag_v2.get(EXTRA_SAMPLES, ()))
    return "A" in image.getbands() or "transparency" in image.info


def _eight_bits(values: np.ndarray, how: Decoding) -> np.ndarray:
    """uint8: the range becomes 0 to 255, in 256 steps of equal size; without one, 16 bits do."""
    whole = values.dtype.kind != "f"
    if how.range is None and not whole:
        raise ValueError("pixels are floating-point numbers; give their range: data.range=[0, 1]")
    low, high = how.range or (0, 65535)
    least, most = values.min(), values.max()
    if how.strict and not low <= least <= most <= high:
        raise ValueError(
            f"its values are {least} to {most}, those of the first images {low:g} to {high:g}; "
            f"give the range of all: data.range=[lowest, highest]"
        )
    step = (high - low + whole) / 256
    return ((values.astype(np.float64) - low) // step).clip(0, 255).astype(np.uint8)


def _reason(data: bytes, error: Exception) -> str:
    """Why the data cannot be decoded, in one line; plain words for the common causes."""
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that Pillow cannot read"
    text = " ".join(str(error).split()) or type(error).__name__
    if "remature end" in text or "truncated" in text.lower():
        return f"truncated ({text})"
    return text
