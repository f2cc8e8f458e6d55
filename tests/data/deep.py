"""Images of many channels and bits, and their files, for the tests."""

import io
import struct
import zlib

import numpy as np
import tifffile

SIDE = 16  # pixels


def as_tiff(values: np.ndarray, **how) -> bytes:
    out = io.BytesIO()
    usual = {"photometric": "minisblack"}
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim == 3 and "planarconfig" not in how:
        usual = {"photometric": "rgb" if values.shape[2] == 3 else "minisblack"}
        usual["planarconfig"] = "contig"
    tifffile.imwrite(out, values, **{**usual, **how})
    return out.getvalue()


def as_npy(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def bands(count: int, kind: type, seed: int = 0) -> np.ndarray:
    """(H, W, C) over all values of the type."""
    random = np.random.default_rng(seed)
    image = random.integers(0, np.iinfo(kind).max, (12, SIDE, count), kind, endpoint=True)
    image[0, 0], image[0, 1] = 0, np.iinfo(kind).max
    return image


def png_of_16_bits(image: np.ndarray) -> bytes:
    """(H, W, 3 or 4) uint16; Pillow cannot write it."""
    height, width, channels = image.shape
    rows = [b"\0" + row.astype(">u2").tobytes() for row in image]

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    body = [
        chunk(b"IHDR", head),
        chunk(b"IDAT", zlib.compress(b"".join(rows))),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)
