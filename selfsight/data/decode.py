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
from selfsight.data.source import BadImage, Source, first_line

MOST_PIXELS = Image.MAX_IMAGE_PIXELS  # 89 million: a larger image is refused
JPEG = b"\xff\xd8\xff"  # first bytes of a JPEG file
ORIENTATION = 0x0112  # the EXIF tag
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
    name = source.name(i)
    try:
        return decode_bytes(data, name)
    except MemoryError:
        return (patience or Patience()).wait_for(lambda: decode_bytes(data, name), name)


def decode_bytes(data: bytes, name: str) -> np.ndarray:
    """As `decode`, of the content of an image file; `name` is what an error calls it. Raises:
    MemoryError besides, which says nothing of the image."""
    try:
        pixels = _decode_jpeg(data) if data.startswith(JPEG) else None
        return _decode_other(data) if pixels is None else pixels
    except MemoryError:
        raise
    # On damaged files decoders raise more kinds of exceptions than their documentation lists.
    except Exception as error:
        raise BadImage(name, _reason(data, error)) from None


def _decode_other(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        _limit(image.width, image.height)
        return np.array(to_rgb(image))


def _limit(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise Image.DecompressionBombError


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """Decode with libjpeg-turbo: the pixels of Pillow in a third of its time.

    Returns None for files that Pillow has to decode.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space in ("CMYK", "YCCK"):
            return None
        _limit(width, height)
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    except (KeyError, ValueError) as error:  # KeyError: the header is cut in the middle
        if "remature end" in str(error):  # Pillow would fill the missing pixels with gray
            raise
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


def to_rgb(image: Image.Image) -> Image.Image:
    """An upright RGB image; transparent pixels become white, 16-bit gray becomes 8-bit."""
    image.load()
    with contextlib.suppress(Exception):  # damaged metadata does not matter
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers; save them as 8 or 16 bits")
    if image.mode.startswith("I;16") or image.mode == "I":
        gray = np.asarray(image).astype(np.uint32) >> 8
        return Image.fromarray(gray.clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _reason(data: bytes, error: Exception) -> str:
    """Why the data cannot be decoded, in one line; plain words for the common causes."""
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that Pillow cannot read"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MOST_PIXELS:,} pixels: refused as a possible decompression bomb"
    text = " ".join(str(error).split()) or type(error).__name__
    if "remature end" in text or "truncated" in text.lower():
        return f"truncated ({text})"
    return text
