"""Any bytes decode to upright RGB pixels, or are refused with a reason."""

import io
import json
import struct
import subprocess
import sys
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from selfsight.data.config import DataConfig
from selfsight.data.decode import USUAL, decode
from selfsight.data.source import BadImage
from tests.conftest import ROOT


class Files:
    """A source of the bytes that it is given."""

    classes = labels = None

    def __init__(self, *content: bytes) -> None:
        self._content = content

    def __len__(self) -> int:
        return len(self._content)

    def read(self, i: int) -> bytes:
        return self._content[i]

    def name(self, i: int) -> str:
        return f"file {i}"


def pixels(data: bytes) -> np.ndarray:
    return decode(Files(data), 0)


def picture(width: int = 20, height: int = 16) -> Image.Image:
    """Smooth colours, so that JPEG keeps them."""
    y, x = np.mgrid[:height, :width]
    channels = [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) % 256]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def animated(kind: str) -> bytes:
    frames = [picture(), picture().rotate(180), picture().rotate(90)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=40)


# What must be right -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_pixels_are_pillows(mode, progressive, orientation):
    image = picture(60, 44).convert(mode)
    data = encoded(image, "JPEG", progressive=progressive, exif=turned(orientation))
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(pixels(data), np.array(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_png_is_turned_upright(orientation):
    ours = pixels(encoded(picture(), exif=turned(orientation)))
    marked = picture()
    marked.getexif()[0x0112] = orientation
    assert np.array_equal(ours, np.array(ImageOps.exif_transpose(marked)))


def test_gray_palette_and_16_bits():
    gray = picture().convert("L")
    assert np.array_equal(pixels(encoded(gray)), np.repeat(np.array(gray)[..., None], 3, 2))
    palette = picture().quantize(64)
    assert np.array_equal(pixels(encoded(palette)), np.array(palette.convert("RGB")))
    deep = np.arange(320, dtype=np.uint16).reshape(16, 20) * 200
    for kind in ("PNG", "TIFF"):
        got = pixels(encoded(Image.fromarray(deep), kind))
        assert np.array_equal(got, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, 2))


def test_transparency_becomes_white():
    clear = picture().convert("RGBA")
    clear.putalpha(0)
    assert (pixels(encoded(clear)) == 255).all()
    half = picture().convert("RGBA")
    half.putalpha(128)
    mixed = np.array(picture()).astype(float) * 128 / 255 + 255 * 127 / 255
    assert np.abs(pixels(encoded(half)) - mixed).max() <= 1
    index = picture().quantize(16)
    got = pixels(encoded(index, transparency=int(np.array(index)[0, 0])))
    assert (got[np.array(index) == np.array(index)[0, 0]] == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_several(kind):
    got = pixels(animated(kind)).astype(int)
    assert got.shape == (16, 20, 3)
    # GIF has a palette, WebP is lossy; a later frame would be far off.
    assert np.abs(got - np.array(picture())).mean() < 12


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 3000), (3000, 1), (2, 65000)])
def test_tiny_and_thin(width, height):
    for kind in ("PNG", "JPEG"):
        assert pixels(encoded(picture(width, height), kind)).shape == (height, width, 3)


def test_damaged_notes_of_a_camera_do_not_matter():
    data = encoded(picture(), "JPEG", exif=turned(6))
    place = data.index(b"Exif\0\0") + 6
    damaged = data[:place] + b"\xff" * 8 + data[place + 8 :]
    assert pixels(damaged).shape == (16, 20, 3)


def test_arrays_pass_as_they_are():
    array = np.zeros((2, 3, 3), np.uint8)
    source = Files()
    source.read = lambda i: array
    assert decode(source, 0) is array


# What must be refused -----------------------------------------------------------------------------


def png_of_size(width: int, height: int) -> bytes:
    """A few bytes that claim to be as large as that."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_of_size(width: int, height: int) -> bytes:
    data = encoded(picture(), "JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


JPEG = encoded(picture(400, 300), "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"not an image", "not an image"),
        (b"<html></html>", "not an image"),
        (b"\xff\xd8\xff\xe0 cut", "truncated"),
        (JPEG[:200], "truncated"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (JPEG[: len(JPEG) // 2] + b"\xff\xd9", "truncated"),
        (encoded(picture(60, 44))[:-40], "truncated"),
        (png_of_size(10_000, 8_948), "decompression bomb"),
        (png_of_size(60_000, 60_000), "decompression bomb"),
        (jpeg_of_size(60_000, 60_000), "decompression bomb"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
    ],
)
def test_refused_with_a_reason(data, reason):
    with pytest.raises(BadImage, match=reason) as caught:
        pixels(data)
    assert caught.value.name == "file 0"
    assert "\n" not in caught.value.reason
    assert reason in caught.value.reason


def test_the_limit_of_pixels_is_pillows():
    assert USUAL.max_pixels == 89_478_485 == DataConfig().max_pixels
    assert 10_000 * 8_948 > USUAL.max_pixels > 10_000 * 8_947


# Anything else does not happen --------------------------------------------------------------------


OUTCOMES = {"pixels", "refused"}


def seeds() -> list[bytes]:
    """Whole files of every kind that is read."""
    image = picture(48, 40)
    rgba = image.convert("RGBA")
    rgba.putalpha(100)
    deep = Image.fromarray(np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 30)
    files = [
        encoded(image, "JPEG", exif=turned(6)),
        encoded(image, "JPEG", progressive=True),
        encoded(image.convert("L"), "JPEG"),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image),
        encoded(image.quantize(32), transparency=3),
        encoded(deep),
        encoded(rgba),
        encoded(image, "BMP"),
        encoded(image, "WEBP"),
        encoded(rgba, "WEBP", lossless=True),
        animated("GIF"),
        animated("PNG"),
    ]
    files += [encoded(image, "TIFF", compression=c) for c in ("raw", "tiff_lzw", "tiff_deflate")]
    return files


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    """A few of the damages that disks, networks and people do."""
    out = bytearray(data)
    for _ in range(random.integers(1, 6)):
        size = max(1, len(out))
        place, length = int(random.integers(size)), int(random.integers(1, 17))
        match random.integers(7):
            case 0:
                out[place : place + length] = random.bytes(length)
            case 1:
                del out[place:]
            case 2:
                del out[place : place + length]
            case 3:
                out[place:place] = random.bytes(length)
            case 4:
                out[place : place + 1] = bytes([1 << int(random.integers(8))])
            case 5:
                out[place : place + length] = random.choice([b"\0", b"\xff"]) * length
            case 6:
                other = int(random.integers(size))
                out[place : place + length] = out[other : other + length]
    return bytes(out)


def outcome(data: bytes) -> str:
    """pixels or refused; anything else is an error of ours."""
    try:
        got = pixels(data)
    except BadImage as error:
        return "refused" if error.reason and "\n" not in error.reason else "without a reason"
    assert got.dtype == np.uint8
    assert got.ndim == 3
    assert got.shape[2] == 3
    assert got.size > 0
    return "pixels"


def fuzz(count: int, seed: int) -> Counter:
    """Outcomes of so many damaged files."""
    random, whole = np.random.default_rng(seed), seeds()
    return Counter(outcome(mutate(whole[n % len(whole)], random)) for n in range(count))


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"]),
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_decode_or_are_refused(data, head):
    assert outcome(head + data) in OUTCOMES


def test_ten_thousand_damaged_files():
    """In a process of its own: a crash or a hang in a decoder's C code would show."""
    code = (
        "import json; from tests.data.test_decode import fuzz; print(json.dumps(fuzz(10_000, 0)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    print(counts)
    assert sum(counts.values()) == 10_000
    assert set(counts) == OUTCOMES
