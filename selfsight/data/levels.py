"""The range of values in images of more than 8 bits: of 12 bits stored in 16, say."""

import io

import numpy as np
from PIL import Image

from selfsight.data.decode import DEEP, JPEG, USUAL
from selfsight.data.source import Source

SAMPLE = 32  # images that are looked at, evenly spread over the source
DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits that cameras and scanners use


def found_range(source: Source) -> tuple[int, int] | None:
    """(lowest, highest) value that the bits allow which some images use; None if these have 8 bits.

    Of 12 bits stored in 16 (0, 4095), of signed values (-2^k, 2^k - 1).
    """
    least, most = 0, -1
    for i in sorted({round(place) for place in np.linspace(0, len(source) - 1, SAMPLE)}):
        values = _deep_values(source, i)
        if values is not None:
            least, most = min(least, int(values.min())), max(most, int(values.max()))
    if most < 0 and least == 0:
        return None
    bits = max(most.bit_length(), (-least - 1).bit_length() if least else 0)
    depth = next(depth for depth in DEPTHS if depth >= bits)
    return (-(2**depth) if least < 0 else 0, 2**depth - 1)


def _deep_values(source: Source, i: int) -> np.ndarray | None:
    """The values of image i, if they are whole numbers of more than 8 bits."""
    if source.name(i).lower().endswith((".jpg", ".jpeg")):
        return None
    try:
        data = source.read(i)
        if isinstance(data, np.ndarray) or data.startswith(JPEG):
            return None
        with Image.open(io.BytesIO(data)) as image:
            small = image.width * image.height <= USUAL.max_pixels
            return np.asarray(image) if image.mode in DEEP[:-1] and small else None
    # On damaged files decoders raise more kinds of exceptions than their documentation lists; such
    # an image is noted where it is used.
    except Exception:
        return None


def describe_range(found: tuple[int, int]) -> str:
    """A line that says what is done with such images."""
    low, high = found
    bits = (high - low).bit_length()
    return (
        f"Images of more than 8 bits: the values {low} to {high} ({bits} bits) become 0 to 255; "
        f"data.range=[lowest, highest] sets another range"
    )
