"""Images of more than 8 bits keep their order and levels; a fourth band is what its file says."""

import io
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from selfsight.data.config import DataConfig
from selfsight.data.decode import decode
from selfsight.data.images import Images
from selfsight.data.levels import DEPTHS, found_range
from selfsight.data.source import BadImage, decoding, notes
from selfsight.data.sources.open import open_source
from tests.data.test_decode import Files, encoded


def deep(folder, *arrays: np.ndarray, kind: str = "png"):
    for n, values in enumerate(arrays):
        path = folder / f"{n:02}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    return folder


def levels(high: int, side: int = 64) -> np.ndarray:
    return np.linspace(0, high, side * side).round().astype(np.uint16).reshape(side, side)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_bits_stored_in_16_keep_their_levels(tmp_path, bits):
    values = levels(2**bits - 1)
    source = open_source(DataConfig(path=str(deep(tmp_path, values))), "train")
    got = decode(source, 0)
    assert np.array_equal(got[..., 0], values >> (bits - 8))
    assert len(np.unique(got)) == 256
    assert (got[..., 0] == got[..., 1]).all()
    assert f"the values 0 to {2**bits - 1} ({bits} bits) become 0 to 255" in notes(source)[0]


def test_the_range_is_one_for_all_images(tmp_path):
    """A dark image stays darker than a bright one."""
    dark, bright = levels(300), levels(4000)
    source = open_source(DataConfig(path=str(deep(tmp_path, dark, bright))), "train")
    assert decoding(source).range == (0, 4095)
    assert np.array_equal(decode(source, 0)[..., 0], dark >> 4)


def test_signed_values_keep_their_order(tmp_path):
    """Hounsfield units: -1024 to 3071."""
    values = np.linspace(-1024, 3071, 4096).round().astype(np.int32).reshape(64, 64)
    source = open_source(DataConfig(path=str(deep(tmp_path, values, kind="tif"))), "train")
    assert decoding(source).range == (-4096, 4095)
    got = decode(source, 0)[..., 0].astype(int)
    assert (np.diff(got.ravel()) >= 0).all()
    assert np.array_equal(got, (values + 4096) // 32)
    window = DataConfig(path=str(tmp_path), range=(-1024, 3071))
    assert len(np.unique(decode(open_source(window, "train"), 0))) == 256


@given(st.integers(-1000, 1000), st.integers(1, 60000), st.data())
def test_a_given_range_is_a_window(low, width, data):
    values = data.draw(st.lists(st.integers(-2000, 62000), min_size=4, max_size=4))
    image = Image.fromarray(np.array(values, np.int32).reshape(2, 2))
    source = Files(encoded(image, "TIFF"))
    source.decoding = decoding(source)._replace(range=(low, low + width))
    expected = [min(255, max(0, (v - low) * 256 // (width + 1))) for v in values]
    assert decode(source, 0)[..., 0].ravel().tolist() == expected


def test_floats_need_a_range():
    image = Image.fromarray(np.linspace(-1, 1, 256, dtype=np.float32).reshape(16, 16))
    source = Files(encoded(image, "TIFF"))
    with pytest.raises(BadImage, match=r"floating-point .*data\.range=\[0, 1\]"):
        decode(source, 0)
    source.decoding = decoding(source)._replace(range=(-1, 1))
    assert np.unique(decode(source, 0)).tolist() == list(range(256))


def test_a_value_outside_of_the_range_found_is_said(tmp_path):
    """Only some images are looked at: another one of them would be cut off in silence."""
    small = np.full((4, 4), 3000, np.uint16)
    folder = deep(tmp_path, *[small] * 80)
    Image.fromarray(small * 20).save(folder / "01.png")
    source = open_source(DataConfig(path=str(folder)), "train")
    assert decoding(source).range == (0, 4095)
    with pytest.raises(BadImage, match=r"its values are 60000 to 60000, .*data\.range="):
        decode(source, 1)
    whole = open_source(DataConfig(path=str(folder), range=(0, 65535)), "train")
    assert decode(whole, 1)[0, 0, 0] == 60000 >> 8


@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4))
def test_the_range_holds_every_value_in_the_fewest_bits(values):
    image = Image.fromarray(np.array([values], np.int32))
    low, high = found_range(Files(encoded(image, "TIFF")))
    assert low == 0
    assert max(values) <= high
    assert not any(max(values) < 2**d <= high for d in DEPTHS)


def test_images_of_8_bits_have_no_range_and_keep_the_identity_of_their_runs(tmp_path):
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    assert found_range(Files(encoded(image), encoded(image, "JPEG"), b"", b"broken")) is None
    assert "range" not in DataConfig().identity()
    assert "max_pixels" not in DataConfig().identity()
    assert DataConfig(range=(0, 4095)).identity()["range"] == [0, 4095]


# The fourth band ----------------------------------------------------------------------------------


def tiff_of_four_bands(extra: int | None) -> bytes:
    """2 x 2 pixels, 8 bits, RGB 100; the fourth band 0 on the left and 255 on the right."""
    bands = np.full((2, 2, 4), 100, np.uint8)
    bands[:, 0, 3], bands[:, 1, 3] = 0, 255
    tags = [(256, 4, 1, 2), (257, 4, 1, 2), (258, 3, 4, 0), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 0), (277, 3, 1, 4), (278, 4, 1, 2), (279, 4, 1, bands.nbytes)]
    tags += [(284, 3, 1, 1), *([(338, 3, 1, extra)] if extra is not None else [])]
    end = 8 + 2 + 12 * len(tags) + 4
    body = b""
    for tag, kind, count, value in tags:
        value = {258: end, 273: end + 8}.get(tag, value)
        form = "<HHIHH" if kind == 3 and tag != 258 else "<HHII"
        body += struct.pack(form, tag, kind, count, *((value, 0) if form == "<HHIHH" else (value,)))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + body + bytes(4) + struct.pack("<4H", 8, 8, 8, 8) + bands.tobytes()


def test_a_fourth_band_is_transparency_if_its_file_says_so():
    got = decode(Files(tiff_of_four_bands(2)), 0)
    assert got[0].tolist() == [[255] * 3, [100] * 3]


@pytest.mark.parametrize("extra", [None, 0])
def test_another_fourth_band_is_refused_or_read_never_blended(extra):
    source = Files(tiff_of_four_bands(extra))
    with pytest.raises(BadImage, match=r"has 4 channels, .*not transparency; .*data\.channels=4"):
        decode(source, 0)
    source.decoding = decoding(source)._replace(channels=4)
    assert decode(source, 0)[0].tolist() == [[100, 100, 100, 0], [100, 100, 100, 255]]


# Size ---------------------------------------------------------------------------------------------


def test_a_large_image_names_the_key_that_allows_it(tmp_path):
    Image.new("L", (60, 50)).save(tmp_path / "a.png")
    Image.new("L", (60, 50)).save(tmp_path / "b.jpg")
    for limit, fits in ((2999, False), (3000, True)):
        source = open_source(DataConfig(path=str(tmp_path), max_pixels=limit), "train")
        for i in range(2):
            if fits:
                assert decode(source, i).shape == (50, 60, 3)
                continue
            with pytest.raises(
                BadImage, match=r"60 x 50 pixels, .*data\.max_pixels=3000 allows it"
            ):
                decode(source, i)


def test_parts_of_a_source_decode_alike(tmp_path):
    folder = deep(tmp_path / "x", *[levels(4095, 8)] * 6)
    config = DataConfig(path=str(folder))
    images = Images(open_source(config, "train"), config, torch.device("cpu"))
    part = images.part(np.array([4, 1]))
    assert np.array_equal(part.decode(0)[1], images.decode(4)[1])
    assert decoding(part.source) == decoding(images.source)
    assert io.BytesIO(images.source.read(0)).read(4) == b"\x89PNG"
