"""Decode the bytes of one image file to pixels.

The result is an upright (H, W, C) array with the channels and bits of `Decoding`, by default uint8
RGB, or BadImage is raised; no file raises anything else. An error of the machine, such as a lost
disk, is no fault of a file: it is waited for (see `Patience`).
"""

import contextlib
import io
import logging
import struct
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from selfsight.data import formats
from selfsight.data.formats import DEEP, EXTRA, ORIENTATION, UPRIGHT, limit
from selfsight.data.patience import Patience
from selfsight.data.source import BadImage, Decoding, Source, decoding, first_line
from selfsight.data.source import patience as waits
from selfsight.data.values import OtherChannels, Values, shown

Image.MAX_IMAGE_PIXELS = None  # data.max_pixels is the limit, tested before pixels are decoded
JPEG = b"\xff\xd8\xff"  # first bytes of a JPEG file
USUAL = Decoding()

# Pillow warns of damaged metadata, which is ignored here, and of large images, which are refused.
warnings.filterwarnings("ignore", module=r"PIL\b")
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)  # and of bands that it lacks


def decode(source: Source, i: int, patience: Patience | None = None) -> np.ndarray:
    """Image i as (H, W, channels) uint8, or uint16: turned upright by its EXIF orientation.

    Raises: BadImage if it cannot be read or decoded; UserError if the machine cannot read.
    """
    return decoded(source, i, read(source, i, patience), patience)


def read(source: Source, i: int, patience: Patience | None = None) -> bytes | np.ndarray:
    """Image i as the source stores it. Raises: as `decode`."""
    try:
        return source.read(i)
    except (OSError, MemoryError):  # tried again below, which costs reads that succeed nothing
        pass
    name = _name(source, i, patience)
    try:
        return _waiting(source, patience).wait_for(lambda: source.read(i), name)
    except OSError as error:
        raise BadImage(name, error.strerror or first_line(error)) from None


def _waiting(source: Source, patience: Patience | None) -> Patience:
    return patience or Patience(waits(source))


def _name(source: Source, i: int, patience: Patience | None) -> str:
    """The name of image i: a pack reads it, too, from a disk that may be away."""
    try:
        return source.name(i)
    except (OSError, MemoryError):
        pass
    return _waiting(source, patience).wait_for(lambda: source.name(i), f"the name of image {i:,}")


def decoded(
    source: Source, i: int, data: bytes | np.ndarray, patience: Patience | None = None
) -> np.ndarray:
    """The same as `decode`, given what `read` returned."""
    how = decoding(source)
    if isinstance(data, np.ndarray):
        if _is_usual(data, how):
            return data
        return _of_array(data, _name(source, i, patience), how)
    name = _name(source, i, patience)
    try:
        return decode_bytes(data, name, how)
    except MemoryError:
        return _waiting(source, patience).wait_for(lambda: decode_bytes(data, name, how), name)


def _is_usual(array: np.ndarray, how: Decoding) -> bool:
    return array.dtype == np.uint8 and how.bits == 8 and array.shape[2] == how.channels


def _of_array(array: np.ndarray, name: str, how: Decoding) -> np.ndarray:
    try:
        return shown([Values(array)], how)
    except ValueError as error:
        raise BadImage(name, str(error)) from None


def decode_bytes(data: bytes, name: str, how: Decoding = USUAL) -> np.ndarray:
    """As `decode`, of the content of an image file; `name` is what an error calls it. Raises:
    MemoryError besides, which says nothing of the image."""
    try:
        pixels = _decode_jpeg(data, how) if data.startswith(JPEG) else None
        return shown(stored(data, how), how) if pixels is None else pixels
    except MemoryError:
        raise
    # On damaged files decoders raise more kinds of exceptions than their documentation lists.
    except Exception as error:
        raise BadImage(name, _reason(data, error)) from None


def stored(data: bytes, how: Decoding) -> list[Values]:
    """The values of an image file; of several joined ones, those of each. Raises: any exception."""
    if data.startswith(formats.BANDS):
        # neither gray nor RGB, so that nothing is converted
        each = how._replace(channels=2)
        return [_one_band(part, each) for part in formats.parts(data)]
    found = None
    if data.startswith(formats.NPY):
        found = formats.npy(data, how)
    elif data[formats.PREAMBLE :].startswith(formats.DICOM):
        found = formats.dicom(data, how)
    elif data.startswith(formats.TIFF):
        found = formats.tiff(data, how)
    elif data.startswith(formats.PNG):
        found = formats.png16(data, how)
    return [_by_pillow(data, how) if found is None else found]


def _one_band(data: bytes, how: Decoding) -> Values:
    with contextlib.suppress(OtherChannels):
        found = stored(data, how)
        if len(found) == 1 and found[0].array.shape[2] == 1:
            return found[0]
    raise ValueError("the file of a band has several channels; a band is one")


def _by_pillow(data: bytes, how: Decoding) -> Values:
    if data[4:8] == b"ftyp" and data[8:12] in formats.HEIF:
        formats.add_heif()
    with Image.open(io.BytesIO(data)) as image:
        limit(image.width, image.height, how)
        return _values(image, how)


def _decode_jpeg(data: bytes, how: Decoding) -> np.ndarray | None:
    """Decode with libjpeg-turbo: the pixels of Pillow in a third of its time.

    Returns None for files that Pillow has to decode.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space in ("CMYK", "YCCK"):
            return None
        limit(width, height, how)
        if how.channels not in (1, 3):
            raise OtherChannels(1 if space == "Gray" else 3, how.channels)
        pixels = simplejpeg.decode_jpeg(data, "RGB" if how.channels == 3 else "GRAY")
    except OtherChannels:
        raise
    except (KeyError, ValueError) as error:  # KeyError: the header is cut in the middle
        if "remature end" in str(error) or "max_pixels" in str(error):
            raise  # Pillow would fill missing pixels with gray
        return None  # Pillow decides whether the file is damaged, and says why
    turn = UPRIGHT.get(orientation(data))
    pixels = pixels if turn is None else np.ascontiguousarray(turn(pixels))
    return pixels if how.bits == 8 else shown([Values(pixels)], how)


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


def picture(image: Image.Image, how: Decoding = USUAL) -> np.ndarray:
    """The pixels of a Pillow image as `decode` gives them.

    Raises: ValueError for pixels that are floating-point numbers without `how.range`, for values
        outside a range that was found, or for another number of channels.
    """
    return shown([_values(image, how)], how)


def _values(image: Image.Image, how: Decoding) -> Values:
    """Upright; for 1 or 3 channels in gray or RGB, where transparent pixels become white."""
    image.load()
    transparent = _declares_alpha(image)
    with contextlib.suppress(Exception):  # damaged metadata does not matter
        if image.getexif().get(ORIENTATION, 1) != 1:  # else it would be a copy, of much memory
            image = ImageOps.exif_transpose(image)
    if image.mode in DEEP:
        return Values(np.asarray(image)[..., None])
    if how.channels in (1, 3):
        if transparent:
            image = image if image.mode == "RGBA" else image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
            del white  # of a large image, each copy counts
        elif image.mode == "RGBA":  # the fourth band is something else, such as infrared
            raise OtherChannels(4, how.channels)
        image = image.convert("RGB")
        image = image.convert("L") if how.channels == 1 else image
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("L" if image.mode == "1" else "RGBA" if transparent else "RGB")
    pixels = np.array(image)
    return Values(pixels if pixels.ndim == 3 else pixels[..., None])


def _declares_alpha(image: Image.Image) -> bool:
    """Whether a band is transparency: a TIFF file says of a fourth band what it is."""
    if getattr(image, "format", None) == "TIFF" and "A" in image.getbands():
        return not {1, 2}.isdisjoint(image.tag_v2.get(EXTRA, ()))
    return "A" in image.getbands() or "transparency" in image.info


def _reason(data: bytes, error: Exception) -> str:
    """Why the data cannot be decoded, in one line; plain words for the common causes."""
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        if data[4:12] in (b"ftypavif", b"ftypavis"):
            return "this Pillow cannot read AVIF: pip install --upgrade pillow"
        return "not an image, or of a format that Pillow cannot read"
    text = " ".join(str(error).split()) or type(error).__name__
    cut = isinstance(error, struct.error) or "remature end" in text
    if cut or ("truncated" in text.lower() and not text.startswith("truncated (")):
        return f"truncated ({text})"
    return text
