"""Sources, decoding and batches."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfsight import distributed, randomness
from selfsight.batch import Normalization
from selfsight.data.config import DataConfig
from selfsight.data.decode import decode
from selfsight.data.images import Images, center_box, cut
from selfsight.data.source import Subset
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError
from selfsight.train.loader import ViewLoader
from selfsight.views.recipe import ViewGroup

CPU = torch.device("cpu")
GROUPS = [ViewGroup(count=2, size=12, flip=0.5, jitter=0.8, brightness=0.4, hue=0.1)]


def picture(seed: int, width: int = 20, height: int = 16) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def make_folder(root: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(path)
    return root


def open_both(**keys):
    config = DataConfig(**keys)
    return open_source(config, "train"), open_source(config, "test")


# Sources ------------------------------------------------------------------------------------------


def test_digits():
    train, test = open_both()
    assert (len(train), len(test)) == (1437, 360)
    assert train.read(0).shape == (8, 8, 3)
    assert {train.labels[i] for i in range(100)} == set(range(10))
    seen = {train.read(i).tobytes() for i in range(len(train))}
    assert not any(test.read(i).tobytes() in seen for i in range(len(test)))


def test_folder_with_splits_and_every_format(tmp_path):
    endings = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "TIFF", "PNG")
    names = [f"train/{c}/deep/{e}-{c}.{e}" for c in ("cat", "dog") for e in endings]
    root = make_folder(tmp_path, [*names, "val/cat/1.png", "val/dog/2.png"])
    (root / "train" / "cat" / "notes.md").write_text("not an image")
    (root / "train" / "cat" / "._a.png").write_bytes(b"a resource fork")
    train, test = open_both(path=str(root))
    assert train.classes == test.classes == ["cat", "dog"]
    assert len(train) == 16
    assert [test.labels[i] for i in range(2)] == [0, 1]
    for i in range(len(train)):
        assert decode(train, i).shape == (16, 20, 3)
        assert f"/{train.classes[train.labels[i]]}/" in train.name(i)


def test_folder_without_labels_has_no_test_split(tmp_path):
    root = make_folder(tmp_path, ["a.png", "b.png", "later/c.png"])
    train, test = open_both(path=str(root))
    assert train.classes is None
    assert test is None
    assert len(train) == 3


def test_folder_without_test_split_is_divided_once(tmp_path):
    root = make_folder(tmp_path, [f"{c}/{i}.png" for c in "ab" for i in range(20)])
    train, test = open_both(path=str(root), test_fraction=0.25)
    assert isinstance(train, Subset)
    names = [s.name(i) for s in (train, test) for i in range(len(s))]
    assert (len(train), len(test)) == (30, 10)
    assert len(set(names)) == 40
    again = open_source(DataConfig(path=str(root), test_fraction=0.25), "test")
    assert [again.name(i) for i in range(10)] == [test.name(i) for i in range(10)]


def write_parquet(path: Path, labels: list[int] | None, start: int = 0) -> None:
    rows = []
    for i in range(4):
        buffer = io.BytesIO()
        picture(start + i).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    columns = {"image": rows} | ({"label": labels} if labels else {})
    pq.write_table(pa.table(columns), path)


def test_parquet_of_several_files(tmp_path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", [0, 1, 2, 0])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [2, 1, 0, 0], start=4)
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [1, 1, 0, 2], start=8)
    train, test = open_both(path=str(tmp_path))
    assert (len(train), len(test)) == (8, 4)
    assert train.classes == ["0", "1", "2"]
    assert [train.labels[i] for i in range(8)] == [0, 1, 2, 0, 2, 1, 0, 0]
    assert np.array_equal(decode(train, 5), np.array(picture(5)))


def test_parquet_of_cifar10(cifar10):
    train, test = open_both(path=str(cifar10))
    assert (len(train), len(test)) == (50_000, 10_000)
    assert train.classes[:2] == ["airplane", "automobile"]
    assert decode(test, 9_999).shape == (32, 32, 3)


@pytest.mark.parametrize("layout", ["nhwc", "nchw", "nhw", "nhw1"])
def test_arrays(tmp_path, layout):
    x = np.random.default_rng(0).integers(0, 256, (6, 9, 7, 3), np.uint8)
    if layout in ("nhw", "nhw1"):
        x[:] = x[..., :1]
    stored = {
        "nhwc": x,
        "nchw": x.transpose(0, 3, 1, 2),
        "nhw": x[..., 0],
        "nhw1": x[..., :1],
    }[layout]
    path = tmp_path / "data.npz"
    np.savez(path, train_images=stored, train_labels=np.arange(6) % 2, test_images=stored[:2])
    train, test = open_both(path=str(path))
    assert np.array_equal(train.read(4), x[4])
    assert train.labels[5] == 1
    assert len(test) == 2
    assert test.classes is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], r"expected 2 labels, one for each image, found the shape \(3,\)"),
        ([0.5, 1.0], "label 0.5 is no whole number: the target of a regression is no class"),
        ([np.nan, 1.0], "label nan is no whole number"),
        ([0, -1], "label -1 is below 0"),
        (["a", "1"], "some labels are numbers and others are names"),
        ([], "expected 2 labels"),
        ([[0, 1], [1, 1]], "are not one-hot: an image has several labels"),
        ([[0.2, 0.8], [0.5, 0.5]], "are not one-hot"),
        (["1,3", "2"], "label 1,3 is several numbers"),
    ],
)
def test_labels_of_arrays_that_mean_no_class(tmp_path, labels, message):
    path = tmp_path / "data.npz"
    np.savez(path, images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.array(labels))
    with pytest.raises(UserError, match=r"data\.npz: .*" + message):
        open_source(DataConfig(path=str(path)), "train")
    assert open_source(DataConfig(path=str(path), labels=False), "train").classes is None


def test_torchvision_with_a_split_of_its_own(tmp_path, monkeypatch):
    """torchvision's own reader of STL-10, on files of a few images without their checksums."""
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    labels = {"train": [1, 2, 2, 1], "test": [2, 2, 1], "unlabeled": [0] * 5}
    for name, numbers in labels.items():
        pixels = np.random.default_rng(len(numbers)).integers(0, 256, (len(numbers), 3 * 96 * 96))
        pixels.astype(np.uint8).tofile(folder / f"{name}_X.bin")
        if name != "unlabeled":
            np.array(numbers, np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\n")

    train, test = open_both(source="torchvision:STL10", path=str(tmp_path))
    assert train.classes == test.classes == ["airplane", "bird"]
    assert [train.labels[i] for i in range(4)] == [0, 1, 1, 0]
    for split, count in (("unlabeled", 5), ("train+unlabeled", 9)):
        train, test = open_both(source=f"torchvision:STL10:{split}", path=str(tmp_path))
        assert (len(train), len(test)) == (count, 3)
        assert train.read(count - 1).shape == (96, 96, 3)
        assert train.classes is None
        assert train.labels is None
        assert [test.labels[i] for i in range(3)] == [1, 1, 0]
    with pytest.raises(UserError, match=r"torchvision:STL10, .*Unknown value 'labelled'"):
        open_both(source="torchvision:STL10:labelled", path=str(tmp_path))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": "nowhere"}, "data.path=nowhere: no such file or folder"),
        ({"source": "folder"}, "data.source=folder needs data.path"),
        ({"source": "foldr", "path": "."}, "Did you mean 'folder'"),
        ({"path": "empty"}, "contains no images"),
        ({"path": "notes.md"}, "is not a folder, nor a file that ends in .csv, .json"),
        ({"path": "broken.parquet"}, "not readable as parquet"),
        ({"path": "broken.npz"}, "not readable as NumPy arrays"),
        ({"path": "float.npy"}, "images of float64; give the range of their values: data.range="),
        ({"path": "objects.npy"}, "not readable as NumPy arrays"),
        ({"path": "objects.npz"}, "not readable as NumPy arrays"),
        ({"path": "damaged.npz"}, "not readable as NumPy arrays"),
        ({"path": "none.npz"}, "images must be numbers of shape"),
        ({"source": "torchvision:CIFAR11"}, "Did you mean 'CIFAR10'"),
        ({"source": "torchvision:CIFAR10:unlabeled"}, "has a train and a test split only"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, keys, message):
    monkeypatch.chdir(tmp_path)
    os.mkdir("empty")
    for name in ("notes.md", "broken.parquet", "broken.npz"):
        Path(name).write_text("nothing useful")
    np.save("float.npy", np.zeros((2, 4, 4, 3)))
    np.save("objects.npy", np.array([{}], dtype=object))
    np.savez("objects.npz", images=np.array([{}], dtype=object))
    np.savez_compressed("damaged.npz", images=np.array(picture(0))[None])
    content = Path("damaged.npz").read_bytes()
    Path("damaged.npz").write_bytes(content[:400] + b"damaged" + content[407:])
    np.savez("none.npz", images=np.zeros((0, 4, 4, 3), np.uint8), labels=np.zeros(0, int))
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        open_source(DataConfig(**keys), "train")


# Crops ------------------------------------------------------------------------------------------


def test_cut_is_torchvisions_resized_crop():
    image = np.array(picture(0, 50, 40))
    ours = cut(image, [3, 5, 30, 20], 16)
    theirs = F.resized_crop(
        torch.from_numpy(image).permute(2, 0, 1), 3, 5, 30, 20, [16, 16], antialias=True
    )
    assert (ours.int() - theirs.int()).abs().max() <= 1


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.1, 1))
def test_center_box_lies_inside(height, width, fraction):
    top, left, h, w = center_box(height, width, fraction)
    assert h == w >= 1
    assert top >= 0
    assert left >= 0
    assert top + h <= height
    assert left + w <= width


def test_small_images_of_one_size_are_kept_decoded(tmp_path):
    root = make_folder(tmp_path / "same", [f"{i}.png" for i in range(5)])
    images = Images(open_source(DataConfig(path=str(root)), "train"), DataConfig(), CPU)
    assert images.tensor.shape == (5, 3, 16, 20)
    assert np.array_equal(images.tensor[3].permute(1, 2, 0).numpy(), np.array(picture(3)))
    picture(9, 21, 16).save(root / "odd.png")
    source = open_source(DataConfig(path=str(root)), "train")
    assert Images(source, DataConfig(), CPU).tensor is None
    with pytest.raises(UserError, match=r"data\.in_memory=true: .*odd\.png is 21x16"):
        Images(source, DataConfig(in_memory=True), CPU)


# Batches ------------------------------------------------------------------------------------------


def loader(batch_size: int = 32, parts: int = 1, in_memory: bool | None = None, seed: int = 0):
    config = DataConfig(in_memory=in_memory)
    images = Images(open_source(config, "train"), config, CPU)
    unit = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return ViewLoader(
        images,
        GROUPS,
        batch_size=batch_size,
        seed=seed,
        normalization=Normalization(*unit),
        parts=parts,
    )


def test_an_epoch_shows_every_image_at_most_once():
    batches = loader(64)
    assert batches.steps_per_epoch == 1437 // 64
    seen = np.concatenate([batches.indices(s) for s in range(batches.steps_per_epoch)])
    assert len(set(seen)) == len(seen)
    assert not np.array_equal(batches.indices(0), batches.indices(batches.steps_per_epoch))


def test_batches_do_not_depend_on_where_they_start():
    all_steps = [b for (b,) in loader().steps(0, 5)]
    later = [b for (b,) in loader().steps(3, 5)]
    for a, b in zip(all_steps[3:], later, strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.labels, b.labels)
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


def test_parts_make_up_the_batch():
    ((whole,),) = loader(32).steps(2, 3)
    (parts,) = loader(32, parts=4).steps(2, 3)
    assert torch.equal(torch.cat([p.index for p in parts]), whole.index)
    for v in range(2):
        together = torch.cat([p.views[v] for p in parts])
        torch.testing.assert_close(together, whole.views[v], rtol=0, atol=5e-5)


def test_ranks_make_up_the_batch(monkeypatch):
    ((whole,),) = loader(32).steps(1, 2)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    halves = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda r=rank: r)
        ((half,),) = loader(32).steps(1, 2)
        halves.append(half)
    assert torch.equal(torch.cat([h.index for h in halves]), whole.index)
    together = torch.cat([h.views[0] for h in halves])
    torch.testing.assert_close(together, whole.views[0], rtol=0, atol=5e-5)


def test_decoding_on_demand_gives_the_views_of_data_in_memory():
    ((kept,),) = loader(in_memory=True).steps(2, 3)
    ((fresh,),) = loader(in_memory=False).steps(2, 3)
    assert torch.equal(kept.index, fresh.index)
    for a, b in zip(kept.views, fresh.views, strict=True):
        # crops cut while decoding are rounded to 1/255 before the colours, which can double the gap
        assert (a - b).abs().mean() < 0.005
        assert (a - b).abs().max() < 0.1


@given(st.integers(1, 8), st.integers(1, 4))
@settings(max_examples=10, deadline=None)
def test_workers_change_nothing(workers, start):
    config = DataConfig(in_memory=False, workers=workers)
    images = Images(Subset(open_source(config, "train"), np.arange(64)), config, CPU)
    unit = ((0.0,) * 3, (1.0,) * 3)
    kwargs = {"batch_size": 8, "seed": 0, "normalization": Normalization(*unit)}
    got = [b.views[1] for (b,) in ViewLoader(images, GROUPS, **kwargs).steps(start, start + 3)]
    expected = [
        ViewLoader(images, GROUPS, **kwargs).batch_of(0, _rows(64, start + k, 8)).views[1]
        for k in range(3)
    ]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def _rows(n: int, step: int, batch: int) -> np.ndarray:
    places = np.arange(step * batch, (step + 1) * batch)
    return randomness.shuffled(places, n, randomness.ORDER, 0, 0)


@pytest.mark.parametrize(
    ("batch_size", "parts", "message"), [(2000, 1, "only 1437 images"), (30, 4, "not a multiple")]
)
def test_impossible_batches(batch_size, parts, message):
    with pytest.raises(UserError, match=message):
        loader(batch_size, parts)


def test_a_limit_draws_training_images_and_leaves_the_test_split():
    whole = open_source(DataConfig(), "train")
    few, more = (open_source(DataConfig(limit=n), "train") for n in (50, 90))
    names = [{s.name(i) for i in range(len(s))} for s in (few, more, whole)]
    assert [len(n) for n in names] == [50, 90, 1437]
    assert names[0] < names[1] < names[2]
    assert few.name(0) != whole.name(0), "drawn, not the first ones"
    assert few.labels[3] == whole.labels[int(few.name(3).split()[-1])]
    assert len(open_source(DataConfig(limit=50), "test")) == 360
    assert len(open_source(DataConfig(limit=5000), "train")) == 1437
