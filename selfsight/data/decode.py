"""From the bytes of one image file to uint8 RGB pixels, or to the reason why not.

Files come from anywhere, so there are two outcomes and no third: an upright (H, W, 3) array, or
BadImage.
"""

import contextlib
import io
import warnings
from functools import partial

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from selfsight.data.source import BadImage, Source

MOST_PIXELS = Image.MAX_IMAGE_PIXELS  # 89 million: more is taken for a decompression bomb
JPEG = b"\xff\xd8\xff"  # how its files begin
ORIENTATION = 0x0112  # EXIF's tag
# What EXIF's orientations ask for.
_UPRIGHT = {
    2: np.fliplr,
    3: partial(np.rot90, k=2),
    4: np.flipud,
    5: partial(np.swapaxes, axis1=0, axis2=1),
    6: partial(np.rot90, k=3),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}

# Pillow warns of damaged notes and of large images: here the first do not matter, the second are
# refused.
warnings.filterwarnings("ignore", module=r"PIL\b")


def decode(source: Source, i: int) -> np.ndarray:
    """Image i as uint8 (H, W, 3): upright as EXIF says, any colour mode converted to RGB.

    Raises: BadImage if it cannot be read or decoded.
    """
    return decoded(source, i, read(source, i))


def read(source: Source, i: int) -> bytes | np.ndarray:
    """What the source holds. Raises: BadImage if it cannot be read."""
    try:
        return source.read(i)
    except OSError as error:
        raise BadImage(source.name(i), error.strerror or str(error)) from None


def decoded(source: Source, i: int, data: bytes | np.ndarray) -> np.ndarray:
    """As `decode`, of what `read` returned."""
    return data if isinstance(data, np.ndarray) else decode_bytes(data, source.name(i))


def decode_bytes(data: bytes, name: str) -> np.ndarray:
    """As `decode`, of the content of an image file; `name` is what an error calls it."""
    try:
        pixels = _decode_jpeg(data) if data.startswith(JPEG) else None
        return _decode_other(data) if pixels is None else pixels
    # Decoders meet hostile bytes with more kinds of exceptions than their pages list.
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
    """By libjpeg-turbo: the same pixels as Pillow in a third of the time; None if Pillow must."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space in ("CMYK", "YCCK"):
            return None
        _limit(width, height)
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    except (KeyError, ValueError) as error:  # KeyError: of a header cut in the middle
        if "remature end" in str(error):  # Pillow would make the rest of the picture gray
            raise
        return None  # Pillow decides whether it is broken, and says why
    turn = _UPRIGHT.get(orientation(data))
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def orientation(data: bytes) -> int:
    """EXIF's orientation of a JPEG file, 1 if it has none."""
    place = 2
    while data[place : place + 1] == b"\xff":
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            exif = Image.Exif()
            try:
                exif.load(data[place + 4 : place + 2 + length])
                return exif.get(ORIENTATION, 1)
            except Exception:  # damaged notes, in too many ways to name; the pixels may be whole
                return 1
        if marker == 0xDA or length < 2:  # the scan begins: there are no more headers
            break
        place += 2 + length
    return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB; transparency becomes white, 16-bit gray is scaled to 8."""
    image.load()
    with contextlib.suppress(Exception):  # damaged notes of a camera; the pixels are whole
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
    """In one line, in a user's words where they are known."""
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that Pillow does not know"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MOST_PIXELS:,} pixels, taken for a decompression bomb"
    text = " ".join(str(error).split()) or type(error).__name__
    if "remature end" in text or "truncated" in text.lower():
        return f"truncated ({text})"
    return text
