"""Numbers measured on the training images, once, and the same in everything that follows; crops of
any channels and bits."""

import json

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from selfsight.batch import Normalization
from selfsight.config import validate
from selfsight.data import measure
from selfsight.data.bad import BadImages
from selfsight.data.check import check
from selfsight.data.config import DataConfig
from selfsight.data.crops import CropDecoder
from selfsight.data.images import Images, resize
from selfsight.data.measure import mean_and_std, recorded, settled
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError
from selfsight.train.loader import ViewLoader
from selfsight.views.recipe import ViewGroup
from tests.conftest import TINY
from tests.data.deep import as_tiff, bands

CPU = torch.device("cpu")


def tiffs(root, count: int, channels: int, kind: type):
    root.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (root / f"{n}.tif").write_bytes(as_tiff(bands(channels, kind, n)[: 4 + n]))
    return root


# Mean and std -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4, 12])
def test_mean_and_std_are_those_of_the_pixels(tmp_path, channels, kind):
    """Every image counts alike, whatever its size."""
    root = tiffs(tmp_path / "a", 6, channels, kind)
    bits = 8 * np.dtype(kind).itemsize
    config = DataConfig(path=str(root), channels=channels, bits=bits, mean="auto", std="auto")
    images = [bands(channels, kind, n)[: 4 + n] / np.iinfo(kind).max for n in range(6)]
    mean = np.mean([image.mean((0, 1)) for image in images], 0)
    square = np.mean([(image**2).mean((0, 1)) for image in images], 0)
    found = settled(config, open_source(config, "train"))
    assert found.mean == pytest.approx(mean, abs=2e-6)
    assert found.std == pytest.approx(np.sqrt(square - mean**2), abs=2e-6)
    assert found.normalization.mean == found.mean
    one, three = (mean_and_std(open_source(config, "train"), c) for c in threads(config))
    assert one == three


def threads(config: DataConfig):
    return (config.model_copy(update={"workers": workers}) for workers in (1, 3))


def test_broken_images_are_left_out_and_none_is_an_error(tmp_path):
    root = tiffs(tmp_path / "a", 3, 3, np.uint8)
    config = DataConfig(path=str(root), mean="auto", std=[0.5] * 3)
    whole = settled(config, open_source(config, "train"))
    (root / "9.tif").write_bytes(b"")
    assert settled(config, open_source(config, "train")).mean == whole.mean
    assert whole.std == (0.5, 0.5, 0.5)
    for file in root.iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the images can be decoded: Cannot decode "):
        settled(config, open_source(config, "train"))


def test_a_sample_of_many_is_the_same_each_time(tmp_path, monkeypatch):
    root = tiffs(tmp_path / "a", 8, 3, np.uint8)
    config = DataConfig(path=str(root), mean="auto", std="auto")
    source = open_source(config, "train")
    whole = mean_and_std(source, config)
    monkeypatch.setattr(measure, "MOST", 3)
    some = mean_and_std(source, config)
    assert some != whole
    assert some == mean_and_std(open_source(config, "train"), config)


def test_images_of_one_value_have_a_deviation(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 51)).save(tmp_path / "a.png")
    config = DataConfig(path=str(tmp_path), mean="auto", std="auto")
    found = mean_and_std(open_source(config, "train"), config)
    assert found.mean == (1.0, 0.0, 0.2)
    assert found.std == (round(1 / 255, 6),) * 3


def test_auto_is_the_default_of_other_channels_alone():
    assert DataConfig().mean == (0.485, 0.456, 0.406)
    assert (DataConfig(channels=4).mean, DataConfig(channels=1).std) == ("auto", "auto")
    assert DataConfig(channels=1, mean=[0.5]).mean == (0.5,)
    stored = json.loads(json.dumps(DataConfig(channels=4).tree()))
    assert DataConfig(**stored) == DataConfig(channels=4)
    assert "mean" in DataConfig(mean="auto").identity()
    assert not {"bits", "bands", "channels", "range"} & DataConfig().identity().keys()


def test_recorded_numbers_take_the_place_of_words_alone():
    described = {"mean": [0.1], "std": [0.2], "range": [0, 9]}
    config = DataConfig(channels=1, std=[0.3], range="auto")
    found = recorded(config, described)
    assert (found.mean, found.std, found.range) == ((0.1,), (0.3,), (0, 9))
    assert recorded(DataConfig(), described) == DataConfig()


def deep_folder(root, low: int, high: int):
    """Images of 12 bits in two classes, in both splits."""
    random = np.random.default_rng(low)
    for split, count in (("train", 40), ("test", 8)):
        for n in range(count):
            path = root / split / "ab"[n % 2] / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(low, high, (16, 16)).astype(np.uint16)).save(path)
    return root


def test_a_run_keeps_its_numbers(tmp_path, command, monkeypatch):
    """Resumed, extended, and evaluated on other images."""
    path = deep_folder(tmp_path / "data", 1000, 2000)
    keys = ["data.path=data", "data.range=auto", "data.mean=auto", "data.std=auto"]
    keys += [k for k in TINY if not k.startswith("batch")] + ["batch_size=20", "seed=3"]
    run = ("pretrain", "digits/simclr", *keys, "--run", "run")
    assert command(*run, "epochs=1", cwd=tmp_path).returncode == 0
    about = json.loads((tmp_path / "run" / "encoder.json").read_text())
    config = DataConfig(path=str(path), range="auto", mean="auto", std="auto")
    right = settled(config, open_source(config, "train"))
    low, high = right.range
    assert 1000 <= low < 1010
    assert 1990 < high <= 2000
    assert about["mean"] == about["data"]["mean"] == list(right.mean)
    assert about["data"]["range"] == [low, high]
    data = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]
    assert (data["range"], data["mean"]) == ("auto", "auto")

    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(measure, "mean_and_std", never)
    done = command(*run, "epochs=2", "extend=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "run" / "encoder.json").read_text())
    assert again["data"] == about["data"]
    deep_folder(tmp_path / "other", 0, 4000)
    done = command("knn", "run", "data.path=other", "untrained=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result, *_ = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (result["data"]["range"], result["data"]["mean"]) == ([low, high], about["mean"])


# Crops --------------------------------------------------------------------------------------------


def triangles(old: int, new: int) -> np.ndarray:
    """(new, old) the weights of a bilinear resize, antialiased where it makes smaller."""
    scale = old / new
    center = (np.arange(new)[:, None] + 0.5) * scale
    weight = 1 - np.abs(np.arange(old) + 0.5 - center) / max(1, scale)
    weight = weight.clip(0)
    return weight / weight.sum(1, keepdims=True)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 4, 12])
@given(data=st.data())
def test_a_crop_is_a_weighted_mean(channels, kind, data):
    image = bands(channels, kind, data.draw(st.integers(0, 99)))
    top, left = data.draw(st.integers(0, 8)), data.draw(st.integers(0, 10))
    box = [top, left, data.draw(st.integers(1, 12 - top)), data.draw(st.integers(1, 16 - left))]
    size = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    got = resize(image, box, size)
    assert (got.dtype, got.shape) == (kind, (*size, channels))
    crop = image[top : top + box[2], left : left + box[3]]
    right = np.einsum(
        "yh,hwc,xw->yxc", triangles(box[2], size[0]), crop, triangles(box[3], size[1])
    )
    off = np.abs(got - right)
    assert off.max() <= (1.01 if kind == np.uint8 else 0.53)


def test_a_crop_of_its_own_size_keeps_every_bit():
    image = bands(4, np.uint16)
    assert np.array_equal(resize(image, [2, 3, 8, 8], 8), image[2:10, 3:11])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 4, 12])
def test_images_and_batches_of_crops(tmp_path, channels, kind):
    root = tmp_path / "a"
    root.mkdir()
    stack = np.stack([bands(channels, kind, n) for n in range(20)])
    np.save(root / "a.npy", stack)
    bits = 8 * np.dtype(kind).itemsize
    keys = {"path": str(root / "a.npy"), "channels": channels, "bits": bits}
    images = {}
    for workers, in_memory in ((1, True), (1, False), (3, False)):
        config = DataConfig(**keys, workers=workers, in_memory=in_memory)
        images[workers, in_memory] = Images(open_source(config, "train"), config, CPU)
    tensor = images[1, True].tensor
    assert tensor.dtype == (torch.uint8 if bits == 8 else torch.uint16)
    assert np.array_equal(tensor.numpy(), stack.transpose(0, 3, 1, 2))
    part = images[1, True].part(np.array([7, 2]))
    assert np.array_equal(part.tensor.numpy(), tensor.numpy()[[7, 2]])

    def draw(index, height, width):
        boxes = torch.stack([index % 3, index % 5, height - 4, width - 6], 1)
        return [boxes, torch.column_stack([boxes, index % 2])]

    rows = np.arange(20)[::-1].copy()
    found = []
    for workers in (1, 3):
        decoder = CropDecoder(images[workers, False], [8, (6, 10)])
        for _ in range(2):  # the second batch reuses the tensors of the first
            crops = decoder.submit(rows, draw)
            assert np.array_equal(crops.wait(), rows)
            found.append([view.numpy().copy() for view in crops.views])
            decoder.take_back(crops)
    assert [view.shape for view in found[0]] == [(20, 8, 8, channels), (20, 6, 10, channels)]
    assert np.array_equal(found[0][0][5], resize(stack[14], [2, 4, 8, 10], 8))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


# selfsight check ----------------------------------------------------------------------------------


def test_check_says_what_the_pixels_are(tmp_path, command):
    root = tiffs(tmp_path / "bands", 6, 12, np.uint16)
    done = command("check", "bands", "data.channels=12", "data.bits=16", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "samples" not in done.stderr  # Pillow would say for each that it cannot read it
    config = DataConfig(path=str(root), channels=12, bits=16)
    found = settled(config, open_source(config, "train"))
    assert "pixels: 12 channels of 16 bits, uint16" in done.stdout
    assert "values: 0 to 65535" in done.stdout
    for key in ("mean", "std"):
        numbers = ", ".join(f"{value:g}" for value in getattr(found, key))
        assert f"data.{key}=[{numbers}]" in done.stdout
    done = command("check", "bands", cwd=tmp_path)
    assert done.returncode == 1
    assert "has 12 channels; all images must have data.channels=3" in done.stdout


def test_check_tells_kinds_apart(tmp_path):
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "a.png")
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "b.png")
    (split,) = check(DataConfig(path=str(tmp_path)), lambda *_: None).splits
    assert split.kinds == {("uint8", 3): 1, ("uint16", 1): 1}
    assert (split.least, split.most) == (1, 4000)


# Batches ------------------------------------------------------------------------------------------


def loader_of(root, channels: int, kind: type, **keys) -> ViewLoader:
    bits = 8 * np.dtype(kind).itemsize
    config = DataConfig(path=str(root), channels=channels, bits=bits, max_bad=0.2, **keys)
    source = open_source(config, "train")
    images = Images(source, config, CPU, BadImages(None, len(source), config.max_bad))
    group = {"size": 8, "flip": 0.5, "crop_scale": [0.3, 1.0], "blur": 0.5, "count": 2}
    how = Normalization((0.5,) * channels, (0.25,) * channels)
    return ViewLoader(images, [validate(ViewGroup, group)], batch_size=6, seed=3, normalization=how)


def batches(loader: ViewLoader, start: int, stop: int) -> list[torch.Tensor]:
    return [torch.stack(parts[0].views) for parts in loader.steps(start, stop)]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 4, 12])
def test_batches_depend_on_no_start_and_no_workers(tmp_path, channels, kind):
    for n in range(20):
        (tmp_path / f"{n:02}.tif").write_bytes(as_tiff(bands(channels, kind, n)))
    whole = batches(loader_of(tmp_path, channels, kind, in_memory=False, workers=1), 0, 6)
    assert whole[0].shape == (2, 6, channels, 8, 8)
    late = batches(loader_of(tmp_path, channels, kind, in_memory=False, workers=3), 4, 6)
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], late, strict=True))
    kept = batches(loader_of(tmp_path, channels, kind), 0, 6)
    late = batches(loader_of(tmp_path, channels, kind), 4, 6)
    assert all(torch.equal(a, b) for a, b in zip(kept[4:], late, strict=True))
    step = 4 / np.iinfo(kind).max  # of a level after the normalisation
    assert max((a - b).abs().max() for a, b in zip(whole, kept, strict=True)) < 1.05 * step + 1e-4


def test_damaged_files_and_other_channels_are_replaced(tmp_path):
    for n in range(20):
        content = as_tiff(bands(11 if n == 4 else 12, np.uint16, n))
        (tmp_path / f"{n:02}.tif").write_bytes(content[:-900] if n == 9 else content)
    found = loader_of(tmp_path, 12, np.uint16, in_memory=False)
    for _ in found.steps(0, 6):
        pass
    assert sorted(found.images.broken()) == [4, 9]
    assert "has 11 channels" in found.images.broken()[4]
    assert "truncated" in found.images.broken()[9]
    assert np.array_equal(found.images.decode(4)[1], bands(12, np.uint16, 5))
