"""Images as they are: any number of channels and bits, through every kind of source."""

import io
import json
import sys
from fractions import Fraction
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from selfsight import own
from selfsight.data.config import DataConfig
from selfsight.data.decode import decode
from selfsight.data.pack.plan import PackConfig
from selfsight.data.pack.write import pack
from selfsight.data.source import BadImage, decoding, notes
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError
from tests.data.deep import SIDE, as_npy, as_tiff, bands, png_of_16_bits
from tests.data.test_decode import Files, encoded, picture
from tests.data.test_shards import write_tar

# name -> (type, lowest and highest value, data.range or None, the range that becomes all levels)
RAMPS = {
    "16 bits": (np.uint16, (0, 65535), None, (0, 65535)),
    "12 bits": (np.uint16, (0, 4095), None, (0, 4095)),
    "signed": (np.int16, (-1024, 3071), None, (-4096, 4095)),
    "window": (np.int16, (-1024, 3071), (-160, 239), (-160, 239)),
    "floats": (np.float32, (-1, 1), (-1, 1), (-1, 1)),
}


def ramp(name: str) -> np.ndarray:
    kind, (low, high), *_ = RAMPS[name]
    values = np.linspace(low, high, SIDE * SIDE).reshape(SIDE, SIDE)
    return values.astype(kind) if kind == np.float32 else values.round().astype(kind)


def expected(values: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    """Value by value, with exact fractions."""
    whole, levels = values.dtype.kind != "f", 2**bits

    def level(value: float) -> int:
        step = Fraction(high - low + whole, levels)
        return min(levels - 1, max(0, (Fraction(value) - Fraction(low)) // step))

    found = [level(value) for value in values.ravel().tolist()]
    return np.array(found).reshape(values.shape)


class Own:
    """A data set of the user's own."""

    def __init__(self, images: list) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int):
        return self.images[i]


def given_dataset(images: list) -> DataConfig:
    name = "given images"
    return DataConfig(source=name), own.given([own.Part("data", name, Own(images))])


def make(kind: str, images: list[np.ndarray], root: Path) -> dict:
    """The keys of a source of this kind that holds these images."""
    files = {f"{n}.tif": as_tiff(image) for n, image in enumerate(images)}
    if kind in ("folder", "list", "pack"):
        for name, content in files.items():
            (root / name).write_bytes(content)
    if kind in ("folder", "pack"):
        return {"path": str(root)}
    if kind == "list":
        (root / "list.txt").write_text("\n".join(files))
        return {"path": str(root / "list.txt")}
    if kind == "webdataset":
        return {"path": str(write_tar(root / "a.tar", files))}
    if kind == "npy":
        for n, image in enumerate(images):
            (root / f"{n}.npy").write_bytes(as_npy(image))
        return {"path": str(root)}
    if kind in ("npz", "one npy"):
        path = root / ("a.npz" if kind == "npz" else "a.npy")
        stack = np.stack(images) if images[0].ndim == 3 else np.stack(images)[..., None]
        np.savez(path, images=stack) if kind == "npz" else np.save(path, stack)
        return {"path": str(path)}
    columns = [{"bytes": content, "path": None} for content in files.values()]
    if kind == "parquet":
        pq.write_table(pa.table({"image": columns}), root / "a.parquet")
    if kind == "arrays in parquet":
        pq.write_table(pa.table({"image": [v.tolist() for v in images]}), root / "a.parquet")
    if kind == "huggingface":
        data = datasets.Dataset.from_dict(
            {"image": columns}, datasets.Features({"image": datasets.Image()})
        )
        data.save_to_disk(root / "saved")
        return {"path": str(root / "saved")}
    return {"path": str(root / "a.parquet")}


KINDS = ["folder", "list", "webdataset", "parquet", "npz", "one npy", "npy", "huggingface"]


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", RAMPS)
@pytest.mark.parametrize("kind", [*KINDS, "own arrays", "own PIL images", "pack"])
def test_a_ramp_has_the_right_values_in_every_kind_of_source(tmp_path, kind, name, bits):
    values, (_, _, asked, used) = ramp(name), RAMPS[name]
    keys = {"bits": bits, "range": asked, "channels": 1, "mean": [0.5], "std": [0.5]}
    right = expected(values, *used, bits)
    if kind.startswith("own"):
        deep = values.astype(np.int32) if values.dtype == np.int16 else values  # of Pillow
        image = values if kind == "own arrays" else Image.fromarray(deep)
        config, parts = given_dataset([image, image])
        with parts:
            got = decode(open_source(config.model_copy(update=keys), "train"), 1)
    else:
        path = make(kind, [values, values], tmp_path)
        config = DataConfig(**path, **keys)
        if kind == "pack":
            pack(config, PackConfig(raw=True, size=SIDE), tmp_path / "pack", lambda *_: None)
            config = config.model_copy(update={"path": str(tmp_path / "pack")})
        got = decode(open_source(config, "train"), 1)
    assert got.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert np.array_equal(got[..., 0], right)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 4, 12])
@pytest.mark.parametrize("kind", [*KINDS, "arrays in parquet", "own arrays", "pack"])
def test_bands_pass_as_they_are(tmp_path, kind, channels, dtype):
    image = bands(channels, dtype)
    keys = {"channels": channels, "bits": 8 * np.dtype(dtype).itemsize}
    if kind == "own arrays":
        config, parts = given_dataset([image, image])
        with parts:
            source = open_source(config.model_copy(update=keys), "train")
    else:
        config = DataConfig(**make(kind, [image, image], tmp_path), **keys)
        if kind == "pack":
            pack(config, PackConfig(raw=True, size=12), tmp_path / "pack", lambda *_: None)
            config = config.model_copy(update={"path": str(tmp_path / "pack")})
            image = image[:, 2:14]  # the central square
        source = open_source(config, "train")
    got = decode(source, 1)
    assert got.dtype == dtype
    assert np.array_equal(got, image)


@pytest.mark.parametrize(
    "layout", ["contig", "separate", "pages", "deflate", "tiles", "big", "big-endian"]
)
def test_layouts_of_tiff(layout):
    image = bands(5, np.uint16)
    how = {"planarconfig": "contig"}
    if layout in ("separate", "pages"):
        how = {"planarconfig": "separate" if layout == "separate" else None}
        data = as_tiff(np.moveaxis(image, 2, 0), **how)
    else:
        how |= {"deflate": {"compression": "zlib"}, "tiles": {"tile": (16, 16)}}.get(layout, {})
        how |= {"byteorder": ">"} if layout == "big-endian" else {}
        how |= {"bigtiff": True} if layout == "big" else {}
        data = as_tiff(image, **how)
    source = Files(data)
    source.decoding = decoding(source)._replace(channels=5, bits=16)
    assert np.array_equal(decode(source, 0), image)


def test_the_bits_of_bands_are_found(tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.tif").write_bytes(as_tiff(bands(12, np.uint16, n) >> 4))
    source = open_source(DataConfig(path=str(tmp_path), channels=12), "train")
    assert decoding(source).range == (0, 4095)
    assert np.array_equal(decode(source, 1), bands(12, np.uint16, 1) >> 8)


def test_channels_first_where_the_first_axis_alone_fits():
    image = bands(4, np.uint8)
    for stored in (image, image.transpose(2, 0, 1), np.asfortranarray(image)):
        source = Files(as_npy(stored))
        source.decoding = decoding(source)._replace(channels=4)
        assert np.array_equal(decode(source, 0), image)
    rgb = bands(3, np.uint8)[:3]  # (3, W, 3) is height, width, channels
    assert np.array_equal(decode(Files(as_npy(rgb)), 0), rgb)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "npy"])
def test_gray_and_colour_become_each_other_as_pillow_does_it(kind):
    colour = picture() if kind == "JPEG" else Image.fromarray(bands(3, np.uint8))
    gray = colour.convert("L")
    data = [as_npy(np.array(i)) if kind == "npy" else encoded(i, kind) for i in (colour, gray)]
    source = Files(*data)
    assert (decode(source, 1) == decode(source, 1)[..., :1]).all()
    source.decoding = decoding(source)._replace(channels=1)
    if kind != "JPEG":
        assert np.array_equal(decode(source, 0)[..., 0], np.array(gray))
        assert np.array_equal(decode(source, 1)[..., 0], np.array(gray))
        return
    for i, content in enumerate(data):
        luma = np.array(Image.open(io.BytesIO(content)).convert("L")).astype(int)
        assert np.abs(decode(source, i)[..., 0] - luma).max() <= 1


def test_an_image_of_8_bits_in_a_set_of_16_fills_them():
    image = bands(3, np.uint8)
    source = Files(encoded(Image.fromarray(image)), encoded(Image.fromarray(image), "JPEG"))
    source.decoding = decoding(source)._replace(bits=16)
    assert np.array_equal(decode(source, 0), image.astype(np.uint16) * 257)
    assert decode(source, 1).dtype == np.uint16


# Colours of 16 bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [png_of_16_bits, as_tiff])
def test_colours_of_16_bits(tmp_path, write):
    image = bands(3, np.uint16) >> 4
    source = Files(write(image))
    assert np.array_equal(decode(source, 0), image >> 8)  # as always: the high byte
    usual = decoding(source)
    source.decoding = usual._replace(range=(0, 4095))
    assert np.array_equal(decode(source, 0), image >> 4)
    source.decoding = usual._replace(bits=16)
    assert np.array_equal(decode(source, 0), image)
    ending = "png" if write is png_of_16_bits else "tif"
    (tmp_path / f"a.{ending}").write_bytes(write(image))
    (line,) = notes(open_source(DataConfig(path=str(tmp_path)), "train"))
    assert "use only 16 of 256 levels" in line
    assert "data.range=auto" in line
    assert not notes(open_source(DataConfig(path=str(tmp_path), range=(0, 4095)), "train"))


def test_colours_of_12_bits_are_said_without_the_library_that_reads_them(tmp_path, monkeypatch):
    for name in ("imagecodecs", "tifffile"):
        monkeypatch.setitem(sys.modules, name, None)
    for ending, content in (("png", png_of_16_bits), ("tif", as_tiff)):
        (tmp_path / f"a.{ending}").write_bytes(content(bands(3, np.uint16) >> 4))
    (line,) = notes(open_source(DataConfig(path=str(tmp_path)), "train"))
    assert "use only 16 of 256 levels" in line or "use only 15 of 256 levels" in line


def test_transparency_of_16_bits_becomes_white():
    image = bands(4, np.uint16)
    image[..., 3] = np.where(np.arange(SIDE) < 8, 0, 65535)
    source = Files(
        png_of_16_bits(image), as_tiff(image, photometric="rgb", extrasamples=["unassalpha"])
    )
    source.decoding = decoding(source)._replace(bits=16)
    for i in range(2):
        assert (decode(source, i)[:, :8] == 65535).all()
        assert np.array_equal(decode(source, i)[:, 8:], image[:, 8:, :3])


# The range ----------------------------------------------------------------------------------------


def tiffs(root: Path, *images: np.ndarray, start: int = 0) -> Path:
    root.mkdir(exist_ok=True)
    for n, image in enumerate(images, start):
        (root / f"{n:03}.tif").write_bytes(as_tiff(image))
    return root


def test_auto_is_where_the_values_are(tmp_path):
    """A few faulty pixels do not take the levels from all others."""
    random = np.random.default_rng(0)
    images = [random.normal(900, 60, (64, 64)).round().astype(np.uint16) for _ in range(8)]
    images[0][0, 0] = 65535
    root = tiffs(tmp_path / "a", *images)
    low, high = np.percentile(np.stack(images), (0.1, 99.9))
    source = open_source(DataConfig(path=str(root), range="auto"), "train")
    assert decoding(source).range == (np.floor(low), np.ceil(high))
    assert decoding(source).is_found is False
    assert len(np.unique(decode(source, 0))) > 200
    usual = open_source(DataConfig(path=str(root)), "train")
    assert len(np.unique(decode(usual, 1))) < 16
    assert any("use only 1 of 256 levels" in n or "use only 2 of 256" in n for n in notes(usual))


def test_auto_of_floats(tmp_path):
    images = [np.linspace(-3, 5, 4096, dtype=np.float32).reshape(64, 64)] * 2
    config = DataConfig(path=str(tiffs(tmp_path / "a", *images)), range="auto")
    source = open_source(config, "train")
    assert decoding(source).range == pytest.approx((-2.992, 4.992), abs=0.01)
    assert len(np.unique(decode(source, 0))) == 256
    with pytest.raises(UserError, match=r"data\.range=full: floating-point .* data\.range=auto"):
        open_source(config.model_copy(update={"range": "full"}), "train")


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0, 4095], (0, 65535)),
        ([-5, 100], (-32768, 32767)),
        ([0, 70000], (0, 2**32 - 1)),
        ([-1, 70000], (-(2**31), 2**31 - 1)),
    ],
)
def test_full_is_what_16_bits_hold_or_32(tmp_path, values, found):
    root = tiffs(tmp_path / "a", np.array([values, values], np.int32))
    source = open_source(DataConfig(path=str(root), range="full"), "train")
    assert decoding(source).range == found
    assert "data.range=auto uses all" in notes(source)[0]


def test_a_range_given_that_leaves_few_levels_is_said(tmp_path):
    root = tiffs(tmp_path / "a", ramp("12 bits"))
    (line,) = notes(open_source(DataConfig(path=str(root), range=(0, 65535)), "train"))
    assert line.startswith("data.range=[0, 65535]: the images' values, ")
    assert "use only 16 of 256 levels" in line
    assert not notes(open_source(DataConfig(path=str(root), range=(0, 4095)), "train"))


# Files of bands -----------------------------------------------------------------------------------


def listed_bands(root: Path, image: np.ndarray, names: list[str]) -> Path:
    for n, name in enumerate(names):
        (root / name).mkdir()
        (root / name / "tile.tif").write_bytes(as_tiff(image[..., n]))
    (root / "list.txt").write_text("{band}/tile.tif 1\n{band}/tile.tif 0\n")
    return root / "list.txt"


def test_an_image_of_several_files(tmp_path):
    image, names = bands(4, np.uint16), ["B02", "B03", "B04", "B08"]
    path = listed_bands(tmp_path, image, names)
    config = DataConfig(path=str(path), bands=names, channels=4, bits=16)
    source = open_source(config.model_copy(update={"test_fraction": 0.5}), "train")
    assert np.array_equal(decode(source, 0), image)
    assert source.name(0).endswith("{band}/tile.tif")
    other = open_source(config.model_copy(update={"bands": tuple(names[::-1])}), "train")
    assert np.array_equal(decode(other, 0), image[..., ::-1])
    (tmp_path / "B04" / "tile.tif").write_bytes(as_tiff(image[:5, :, 0]))
    with pytest.raises(BadImage, match="bands are of different sizes, 16 x 5 and 16 x 12 pixels"):
        decode(source, 0)
    (tmp_path / "B04" / "tile.tif").unlink()
    with pytest.raises(BadImage, match="No such file"):
        decode(source, 0)


@pytest.mark.parametrize(
    ("line", "keys", "message"),
    [
        ("a.tif 1", {"bands": ["R", "G", "B"]}, r":1: the path has no \{band\}"),
        ("{band}.tif 1", {}, r":1: the path has \{band\}; .*data\.bands=\["),
    ],
)
def test_bands_that_do_not_fit_their_list(tmp_path, line, keys, message):
    (tmp_path / "list.txt").write_text(f"{line}\n")
    with pytest.raises(UserError, match=message):
        open_source(DataConfig(path=str(tmp_path / "list.txt"), **keys), "train")


def test_bands_of_no_list_are_refused(tmp_path):
    root = tiffs(tmp_path / "a", ramp("12 bits"))
    with pytest.raises(UserError, match=r"data\.bands: names the files of a list's paths"):
        open_source(DataConfig(path=str(root), bands=["R", "G", "B"]), "train")


# .npy files in folders ----------------------------------------------------------------------------


def test_npy_files_in_folders_are_images_with_classes_and_splits(tmp_path):
    for n, name in enumerate(["train/cat", "train/dog", "val/cat", "val/dog"]):
        (tmp_path / name).mkdir(parents=True)
        for k in range(2):
            np.save(tmp_path / name / f"{k}.npy", np.full((4, 5, 6), 10 * n + k, np.uint8))
    config = DataConfig(path=str(tmp_path), channels=6)
    train, test = (open_source(config, split) for split in ("train", "test"))
    assert (len(train), train.classes, train.labels.tolist()) == (4, ["cat", "dog"], [0, 0, 1, 1])
    assert test.labels.tolist() == [0, 0, 1, 1]
    assert [int(decode(train, i)[0, 0, 0]) for i in range(4)] == [0, 1, 10, 11]
    assert decode(test, 3)[0, 0].tolist() == [31] * 6


def test_npy_files_beside_images_stay_left_out(tmp_path):
    for n in range(20):
        Image.new("RGB", (4, 4), (n, n, n)).save(tmp_path / f"{n}.png")
    np.save(tmp_path / "features.npy", np.zeros((4, 4)))
    source = open_source(DataConfig(path=str(tmp_path)), "train")
    assert len(source) == 20


# Packs --------------------------------------------------------------------------------------------


def test_a_jpeg_pack_of_bands_is_refused_and_of_gray_is_not(tmp_path):
    root = tiffs(tmp_path / "a", *[bands(1, np.uint8, n)[..., 0] for n in range(3)])
    for keys, named in (({"channels": 4}, "channels=4"), ({"bits": 16}, "bits=16")):
        config = DataConfig(path=str(root), **keys)
        with pytest.raises(UserError, match=rf"data\.{named}: a JPEG file .*--raw"):
            pack(config, PackConfig(), tmp_path / "pack", lambda *_: None)
    config = DataConfig(path=str(root), channels=1)
    pack(config, PackConfig(quality=100), tmp_path / "pack", lambda *_: None)
    packed = open_source(config.model_copy(update={"path": str(tmp_path / "pack")}), "train")
    image = decode(packed, 1)
    assert image.shape == (12, SIDE, 1)
    assert np.abs(image.astype(int) - bands(1, np.uint8, 1)).max() < 8


def test_a_pack_says_its_channels_and_bits(tmp_path):
    root = tiffs(tmp_path / "a", *[bands(6, np.uint16, n) for n in range(3)])
    config = DataConfig(path=str(root), channels=6, bits=16)
    (folder, _), *_ = pack(config, PackConfig(raw=True, size=8), tmp_path / "p", lambda *_: None)
    about = json.loads((folder / "pack.json").read_text())
    assert (about["version"], about["channels"], about["bits"]) == (2, 6, 16)
    assert np.load(folder / "images.npy").dtype == np.uint16
    with pytest.raises(UserError, match=r"6 channels, and data\.channels=3; set data\.channels=6"):
        open_source(DataConfig(path=str(folder)), "train")
    eight = open_source(DataConfig(path=str(folder), channels=6, range=(0, 9)), "train")
    deep = open_source(DataConfig(path=str(folder), channels=6, bits=16, range=(0, 9)), "train")
    assert np.array_equal(decode(eight, 0), decode(deep, 0) >> 8)  # mapped when it was packed
