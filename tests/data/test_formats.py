"""Files that Pillow does not read: DICOM by pydicom's own functions; damaged and hostile files are
refused in one line."""

import io
import struct
import sys

import numpy as np
import pydicom
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_windowing
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from selfsight.data import formats
from selfsight.data.config import DataConfig
from selfsight.data.decode import decode
from selfsight.data.levels import found_range
from selfsight.data.source import BadImage, Decoding
from selfsight.data.sources import files
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError
from tests.data.deep import as_npy, as_tiff, bands, png_of_16_bits
from tests.data.test_decode import Files, encoded, mutate, picture


def opened(data: bytes, **how) -> np.ndarray:
    source = Files(data)
    source.decoding = Decoding(**how)
    return decode(source, 0)


# DICOM --------------------------------------------------------------------------------------------


def dicom(values: np.ndarray, **more) -> bytes:
    about = Dataset()
    about.file_meta = FileMetaDataset()
    about.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    about.file_meta.MediaStorageSOPClassUID = about.SOPClassUID = CTImageStorage
    about.file_meta.MediaStorageSOPInstanceUID = about.SOPInstanceUID = "1.2.3"
    about.Rows, about.Columns = values.shape[:2]
    about.SamplesPerPixel = 3 if values.ndim == 3 else 1
    about.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    about.PlanarConfiguration = 0
    bits = 8 * values.dtype.itemsize
    about.BitsAllocated = about.BitsStored = bits
    about.HighBit = bits - 1
    about.PixelRepresentation = int(values.dtype.kind == "i")
    about.PixelData = values.tobytes()
    for key, value in more.items():
        setattr(about, key, value)
    out = io.BytesIO()
    pydicom.dcmwrite(out, about, enforce_file_format=True)
    return out.getvalue()


COUNTS = np.linspace(0, 4095, 400).round().astype(np.uint16).reshape(20, 20)
CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def test_dicom_shows_its_window():
    data = dicom(COUNTS, **CT, WindowCenter=40, WindowWidth=400)
    about = pydicom.dcmread(io.BytesIO(data))
    units = COUNTS.astype(int) - 1024
    shown = apply_windowing(units, about)  # in the range of the values that the file can hold
    low, high = shown.min(), shown.max()
    right = (shown - low) / (high - low) * 255
    got = opened(data, channels=1)[..., 0]
    assert np.abs(got - right).max() <= 1
    assert len(np.unique(got)) > 30
    deep = opened(data, channels=1, bits=16)[..., 0]
    assert np.abs(deep - right * 257).max() <= 257


def test_dicom_with_a_range_of_the_user(tmp_path):
    (tmp_path / "a.dcm").write_bytes(dicom(COUNTS, **CT, WindowCenter=40, WindowWidth=400))
    source = open_source(DataConfig(path=str(tmp_path), range=(-1024, 3071)), "train")
    units = COUNTS.astype(int) - 1024
    assert np.array_equal(decode(source, 0)[..., 0], (units + 1024) // 16)


def test_dicom_without_a_window_has_the_range_of_its_bits():
    source = Files(dicom(COUNTS, **CT))
    assert found_range(source) == (-4096, 4095)
    assert found_range(Files(dicom(COUNTS, WindowCenter=40, WindowWidth=400))) is None
    half = Files(dicom(COUNTS, RescaleSlope=0.5, RescaleIntercept=0))
    half.decoding = Decoding(range=(0, 2047.5), channels=1)
    assert np.abs(decode(half, 0)[..., 0].astype(int) - COUNTS / 16).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_monochrome1_is_inverted(bits):
    how = {"channels": 1, "bits": bits, "range": (0, 4095)}
    plain = opened(dicom(COUNTS), **how)
    assert (
        opened(dicom(COUNTS, PhotometricInterpretation="MONOCHROME1"), **how)
        == (2**bits - 1 - plain)
    ).all()
    small = (COUNTS >> 4).astype(np.uint8)
    assert np.array_equal(
        opened(dicom(small, PhotometricInterpretation="MONOCHROME1"), channels=1)[..., 0],
        255 - small,
    )


def test_dicom_in_colour_and_of_several_frames():
    image = bands(3, np.uint8)
    assert np.array_equal(opened(dicom(image)), image)
    with pytest.raises(BadImage, match="has 2 frames; save each as a file"):
        opened(dicom(COUNTS.reshape(20, 20), Rows=10, NumberOfFrames=2))


# Other libraries ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "data", "extra"),
    [
        ("tifffile", as_tiff(bands(4, np.uint16)), "tiff"),
        ("pydicom", dicom(COUNTS), "dicom"),
        ("pillow_heif", b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(40), "heif"),
        ("imagecodecs", png_of_16_bits(bands(3, np.uint16)), "tiff"),
    ],
)
def test_a_missing_library_is_named(monkeypatch, module, data, extra):
    monkeypatch.setitem(sys.modules, module, None)
    formats.add_heif.cache_clear()
    with pytest.raises(BadImage, match=rf"needs {module}: pip install 'selfsight\[{extra}\]'"):
        opened(data, channels=4 if module == "tifffile" else 3, bits=16)


def test_files_that_need_a_missing_library_are_left_out_and_named(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    files.image_endings.cache_clear()
    try:
        (tmp_path / "a.dcm").write_bytes(dicom(COUNTS))
        with pytest.raises(UserError, match=r"\.dcm needs pip install 'selfsight\[dicom\]'"):
            open_source(DataConfig(path=str(tmp_path)), "train")
        picture().save(tmp_path / "b.png")
        source = open_source(DataConfig(path=str(tmp_path)), "train")
        assert len(source) == 1
        assert "1 .dcm; .dcm needs pip install 'selfsight[dicom]'" in source.notes[0]
    finally:
        files.image_endings.cache_clear()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif():
    got = opened(encoded(picture(), "AVIF", quality=100)).astype(int)
    assert np.abs(got - np.array(picture())).mean() < 12


# Hostile files ------------------------------------------------------------------------------------


def npy_header(shape: tuple, kind: str = "<u2") -> bytes:
    out = io.BytesIO()
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue()


WHOLE = as_tiff(bands(4, np.uint16))
HOLES = np.full((8, 8, 4), np.nan, np.float32)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (WHOLE[:-200], "truncated"),
        (WHOLE[:40], "."),
        (as_tiff(bands(5, np.uint16)), r"has 5 channels; .*data\.channels=5"),
        (as_tiff(bands(1, np.uint16)), r"has one channel; .*data\.channels=1"),
        (as_npy(bands(4, np.uint16))[:-1], "truncated"),
        (as_npy(bands(7, np.uint16)), r"has 7 channels; .*data\.channels=7"),
        (as_npy(bands(40, np.uint8)), "has 40 channels; at most 32"),
        (as_npy(np.array([{}, {}], object)), "objects of Python are never loaded"),
        (as_npy(np.array(["a"])), "not numbers"),
        (as_npy(np.zeros(5)), r"has the shape \(5,\)"),
        (as_npy(HOLES), "no finite numbers"),
        (npy_header((10**6, 10**6, 4)), "decompression bomb"),
        (npy_header((9000, 9000, 4)), "truncated"),
        (npy_header((-1, 4, 4)), "has the shape"),
        (b"\x93NUMPY\x03\x00" + bytes(50), "version"),
        (encoded(picture(), "JPEG"), r"has 3 channels; .*data\.channels=3"),
        (encoded(picture()), r"has 3 channels"),
        (formats.joined([WHOLE, WHOLE]), "the file of a band has several channels"),
        (formats.joined([encoded(picture().convert("L"))] * 3), "has 3 channels"),
        (formats.joined([formats.joined([WHOLE] * 2)] * 2), "several channels"),
        (formats.joined([WHOLE])[:25], "truncated"),
        (formats.BANDS + b"\xff\xff\xff\xff", "truncated"),
        (dicom(COUNTS)[:300], "."),
        (dicom(COUNTS, Rows=60000, Columns=60000), "decompression bomb"),
    ],
)
def test_files_that_are_refused(data, reason):
    with pytest.raises(BadImage, match=reason) as error:
        opened(data, channels=4, bits=16, range=(0, 1))
    assert "\n" not in error.value.reason


def test_a_tiff_that_says_it_is_large_is_refused_before_memory_is_used():
    data = as_tiff(bands(4, np.uint16), compression="zlib")
    head = data.index(bytes([1, 1, 4, 0, 1, 0, 0, 0]))  # the tag of its length: a 32-bit number
    large = data[: head + 8] + (2**28).to_bytes(4, "little") + data[head + 12 :]
    with pytest.raises(BadImage, match="decompression bomb"):
        opened(large, channels=4)


def deep_seeds() -> list[bytes]:
    small = (COUNTS >> 4).astype(np.uint8)
    tiffs = [
        as_tiff(bands(4, np.uint16), **how)
        for how in ({}, {"compression": "zlib"}, {"tile": (16, 16)}, {"rowsperstrip": 2})
    ]
    arrays = [as_npy(bands(4, np.uint16)), as_npy(bands(4, np.uint8))]
    gray = [encoded(Image.fromarray(small)), dicom(COUNTS), dicom(small, WindowCenter=9)]
    return [*tiffs, *arrays, formats.joined(gray[:2] * 2), png_of_16_bits(bands(4, np.uint16))]


def outcome(data: bytes) -> str:
    try:
        got = opened(data, channels=4, bits=16)
    except BadImage as error:
        return "refused" if error.reason and "\n" not in error.reason else "without a reason"
    assert (got.dtype, got.ndim, got.shape[2]) == (np.uint16, 3, 4)
    assert got.size > 0
    return "pixels"


LAYOUTS = [{"rowsperstrip": 4}, {"tile": (16, 16)}, {"rowsperstrip": 4, "compression": "zlib"}]
OFFSETS, LENGTHS = (273, 324), (279, 325)  # tags of strips, of tiles


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lost", [(OFFSETS,), (LENGTHS,), (OFFSETS, LENGTHS)])
def test_a_tiff_that_does_not_name_all_its_parts_is_refused(layout, lost):
    """tifffile fills what is missing with 0; one entry less of a table is one part less."""
    values = np.random.default_rng(0).integers(1, 60_000, (40, 33, 5)).astype(np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", planarconfig="contig", **layout)
    data, how = bytearray(file.getvalue()), {"channels": 5, "bits": 16, "range": (0, 65535)}
    assert np.array_equal(opened(bytes(data), **how), values)
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as whole:
        tags = whole.pages[0].tags
        tables = [tags[next(tag for tag in pair if tag in tags)] for pair in lost]
    for table in tables:
        data[table.offset + 4 : table.offset + 8] = struct.pack("<I", table.count - 1)
    with pytest.raises(BadImage, match=r"damaged \(of \d+ parts"):
        opened(bytes(data), **how)


def test_damaged_files_of_bands():
    random, whole = np.random.default_rng(0), deep_seeds()
    files = (mutate(whole[n % len(whole)], random) for n in range(600))
    assert {outcome(data) for data in files} == {"pixels", "refused"}


@given(
    st.binary(max_size=200),
    st.sampled_from([formats.NPY, formats.BANDS, *formats.TIFF, bytes(128) + formats.DICOM]),
)
def test_any_bytes_decode_or_are_refused(data, head):
    assert outcome(head + data) in {"pixels", "refused"}
