"""Which part of a path is for training and which for testing, and what is said about it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsight.data.config import DataConfig
from selfsight.data.source import notes
from selfsight.data.sources.open import open_source
from selfsight.data.sources.splits import split_of
from selfsight.errors import UserError


def make(root: Path, tree: str) -> Path:
    """Empty files: 'a/x*3 b/y' are a/x/0.png, a/x/1.png, a/x/2.png and b/y/0.png."""
    for word in tree.split():
        place, _, count = word.partition("*")
        folder = root / place
        folder.mkdir(parents=True, exist_ok=True)
        for n in range(int(count or 1)):
            (folder / f"{n}.png").touch()
    return root


def opened(root: Path | list[Path], **keys) -> tuple:
    path = [str(r) for r in root] if isinstance(root, list) else str(root)
    config = DataConfig(path=path, **keys)
    return open_source(config, "train"), open_source(config, "test")


def shape(source) -> tuple[int, list[str] | None] | None:
    return None if source is None else (len(source), source.classes)


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (
            "train training Train train2017 train_images training_set train-256 images_train",
            "train",
        ),
        ("train-64x64 TrainA trn", "train"),
        ("test test2017 testset Test_Images testA", "test"),
        ("val val2014 val_256 images-val", "val"),
        ("valid", "valid"),
        ("dev dev-set", "dev"),
        ("unlabeled unlabeled2017", "unlabeled"),
        ("train_station trainer latest contest bus_test_drive bus a images 2017 _ é", None),
    ],
)
def test_names_that_say_a_split(names, split):
    assert {split_of(name) for name in names.split()} == {split}


def test_names_of_shards_that_say_a_split():
    said = {
        "train-00000-of-00002-a09b74b3ef9c": "train",
        "imagenet1k-train-0001": "train",
        "imagenet1k-validation-00": "validation",
        "train_station": None,
    }
    assert {name: split_of(name, anywhere=True) for name in said} == said


# tree, train (images, classes), test, words of the notes
LAYOUTS = {
    "a class called train": (
        "bus*8 car*8 train*8",
        (18, "bus car train"),
        (6, "bus car train"),
        "class",
    ),
    "a class called test": ("bus*5 test*5", (8, "bus test"), (2, "bus test"), None),
    "classes called train_station and test_tube": (
        *("train_station*5 test_tube*5", (8, "test_tube train_station")),
        *((2, "test_tube train_station"), None),
    ),
    "train and val with years": ("train2017/a*2 train2017/b val2017/a", (3, "a b"), (1, "a"), None),
    "holdout": ("train/a*2 train/b holdout/a", (3, "a b"), (1, "a"), None),
    "a set of persons": (
        "bounding_box_train*4 bounding_box_test*2 query*2",
        *((4, None), (2, None), "'query'"),
    ),
    "dev": ("train/a*2 dev/a*2", (2, "a"), (2, "a"), "only one class"),
    "splits in a wrapper": (
        "outer/inner/train/a*2 outer/inner/train/b outer/inner/test/a",
        *((3, "a b"), (1, "a"), None),
    ),
    "one wrapper of classes": (
        "data/a*2 data/b*2",
        (3, "data"),
        (1, "data"),
        "only one class, 'data'",
    ),
    "unlabeled beside": (
        "train/a*2 train/b test/a unlabeled*9",
        (3, "a b"),
        (1, "a"),
        "'unlabeled'",
    ),
    "unlabeled to train on": ("unlabeled*4 test/a*2", (4, None), (2, "a"), None),
    "train alone": ("train/a*5 train/b*5", (8, "a b"), (2, "a b"), None),
    "train beside extra images": ("train/a*2 train/b*2 extra*3", (2, "a b"), (2, "a b"), "'extra'"),
    "two folders for training": ("train2014*2 train2017*3 val2017*2", (5, None), (2, None), None),
    "pairs of domains": ("trainA*2 trainB*2 testA testB", (4, None), (1, None), None),
    "VOC": (
        "JPEGImages*6 SegmentationClass*3 SegmentationObject*3",
        (6, None),
        None,
        "Segmentation",
    ),
    "YOLO": ("images/train*6 images/val*2", (6, None), (2, None), None),
    "YOLO, splits above": (
        "train/images*6 train/masks*6 val/images*2",
        (6, None),
        (2, None),
        "'masks'",
    ),
    "a folder of images with classes": ("images/a*5 images/b*5", (8, "a b"), (2, "a b"), None),
    "test without labels, val with": (
        "train/a*3 train/b*3 val/a val/b test*4",
        (6, "a b"),
        (2, "a b"),
        None,
    ),
    "test with labels before val": (
        "train/a*2 train/b val/a*3 test/a test/b",
        (3, "a b"),
        (2, "a b"),
        None,
    ),
    "one image a class": ("a b c d", (4, "a b c d"), None, "class of its own"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_folders(tmp_path, name):
    tree, train, test, said = LAYOUTS[name]
    make(tmp_path, tree)
    if name == "YOLO":
        (tmp_path / "labels/train").mkdir(parents=True)
        (tmp_path / "labels/train/0.txt").write_text("0 .5 .5 .1 .1\n")
    split = lambda pair: pair and (pair[0], pair[1] and pair[1].split())  # noqa: E731
    found = opened(tmp_path)
    assert (shape(found[0]), shape(found[1])) == (split(train), split(test))
    text = "\n".join(notes(found[0]))
    assert said in text if said else not text


@pytest.mark.parametrize(
    "tree",
    [
        "cat/train*2 cat/test dog/train*2 dog/test",
        "set1/train/a set1/val/a set2/train/a set2/val/a",
        "top/one/train2017*3 top/one/val2017 top/two*4",
    ],
)
def test_splits_inside_of_classes_are_not_mixed(tmp_path, tree):
    make(tmp_path, tree)
    with pytest.raises(UserError, match=r"holds splits of its own, 'train.* would be mixed"):
        opened(tmp_path)


def test_sets_with_splits_of_their_own_are_joined_as_the_message_says(tmp_path):
    make(tmp_path, "one/train/a*2 one/test/a two/train/b*3 two/test/b*2")
    train, test = opened(
        [tmp_path / "one/train", tmp_path / "two/train"],
        test_path=[str(tmp_path / "one/test"), str(tmp_path / "two/test")],
    )
    assert (shape(train), shape(test)) == ((5, ["a", "b"]), (3, ["a", "b"]))


def test_only_test_images_is_a_mistake_but_not_of_a_test_path(tmp_path):
    make(tmp_path / "x", "val/a val/b")
    make(tmp_path / "y", "a*3 b*3")
    with pytest.raises(UserError, match="holds only val, and no images for training"):
        opened(tmp_path / "x")
    train, test = opened(tmp_path / "y", test_path=str(tmp_path / "x"))
    assert (shape(train), shape(test)) == ((6, ["a", "b"]), (2, ["a", "b"]))


def test_a_split_made_here_has_every_class_on_both_sides(tmp_path):
    make(tmp_path, " ".join(f"c{n}*{2 + 3 * n}" for n in range(10)))
    train, test = opened(tmp_path)
    sizes = np.array([2 + 3 * n for n in range(10)])
    held = np.bincount(test.labels, minlength=10)
    assert held.tolist() == np.maximum(1, np.round(0.2 * sizes)).astype(int).tolist()
    assert (np.bincount(train.labels) + held).tolist() == sizes.tolist()


# Files of other kinds -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["backup.tar", "mean.npy", "embeddings.npz", "metadata.parquet"])
def test_a_stray_file_does_not_become_the_source(tmp_path, name):
    make(tmp_path, "cat*10 dog*10")
    (tmp_path / name).touch()
    train, test = opened(tmp_path)
    assert len(train) + len(test) == 20
    assert name in "\n".join(notes(train))


def test_as_many_files_of_two_kinds_are_a_question(tmp_path):
    make(tmp_path, "cat*3")
    (tmp_path / "shard.tar").touch()
    with pytest.raises(
        UserError, match=r"3 of folder .*1 of webdataset .*shard\.tar.*; set data\."
    ):
        opened(tmp_path)
    assert shape(opened(tmp_path, source="folder")[0]) == (2, ["cat"])


def test_shards_and_arrays_by_their_names(tmp_path):
    for name in ("train_station", "bus_stop"):
        np.save(tmp_path / f"{name}.npy", np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(
        UserError, match=r"several arrays files .*bus_stop\.npy, train_station\.npy"
    ):
        opened(tmp_path)


def test_a_table_as_a_list(tmp_path):
    for n in range(4):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(tmp_path / f"{n} x.png")
    texts = {
        "named.csv": "id,split,label,filename\n7,a,cat,0 x.png\n8,b,dog,1 x.png\n",
        "plain.csv": '"0 x.png",cat\n1 x.png,dog\n',
        "swapped.csv": "label;image\ncat;0 x.png\ndog;1 x.png\n",
        "tabs.tsv": "image\tlabel\n0 x.png\tcat\n1 x.png\tdog\n",
        "table.txt": "filename,label\n0 x.png,cat\n1 x.png,dog\n",
        "objects.json": '[{"path": "0 x.png", "label": "cat"}, {"img": "1 x.png", "y": "dog"}]',
        "pairs.json": '[["0 x.png", "cat"], ["1 x.png", "dog"]]',
        "mapping.json": '{"0 x.png": "cat", "1 x.png": "dog"}',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        train = open_source(DataConfig(path=str(tmp_path / name), test_fraction=0.01), "train")
        assert [train.classes[n] for n in train.labels] == ["cat", "dog"], name
        assert [Path(train.name(i)).name for i in range(2)] == ["0 x.png", "1 x.png"], name
        assert train.read(1) == (tmp_path / "1 x.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a.png,0,1,1\n", r"a\.csv:1: has 4 cells .*name the columns in a first line"),
        ("b.csv", "path,label\na.png,0.5\n", r"b\.csv:2: label 0.5 is no whole number"),
        ("c.csv", "path,label\na.png\n", r"c\.csv:2: has 1 cells"),
        ("d.json", '{"images": [], "annotations": []}', r"COCO's form"),
        ("e.json", '[{"path": "a.png", "label": [1, 2]}]', r"\[1, 2\] is neither a whole number"),
        ("f.json", "[" * 9999, "nested too deeply"),
        ("g.json", "[1]", "item 1 is not an object"),
        ("i.json", '[["a.png", 0], ["b.png", 1, 2]]', "item 2 is not an object"),
        ("h.csv", b"path,label\na.png,1\n\xff.png,2\n", r"h\.csv:3: is not UTF-8"),
    ],
)
def test_mistakes_of_tables_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        open_source(DataConfig(path=str(tmp_path / name)), "train")


@pytest.mark.parametrize("text", ['["a.png", "b.png"]', '[["a.png"], ["b.png"]]'])
def test_a_list_of_paths_alone_has_no_labels(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    train = open_source(DataConfig(path=str(tmp_path / "x.json")), "train")
    assert (len(train), train.labels) == (2, None)


def test_a_table_without_a_column_of_labels_says_so(tmp_path):
    (tmp_path / "x.csv").write_text("image,age,sex\na.png,30,f\nb.png,31,m\n")
    train = open_source(DataConfig(path=str(tmp_path / "x.csv")), "train")
    assert shape(train) == (2, None)
    assert "no column of labels among age, sex" in notes(train)[0]


# Arrays -------------------------------------------------------------------------------------------


def test_the_forms_of_medmnist_and_keras(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (12, 9, 9), np.uint8)
    y = (np.arange(12) % 3).astype(np.uint8)
    medmnist = {"train_images": x, "train_labels": y[:, None], "val_images": x[:2]}
    medmnist |= {"val_labels": y[:2, None], "test_images": x[:4], "test_labels": y[:4, None]}
    keras = {"x_train": x, "y_train": y, "x_test": x[:4], "y_test": y[:4]}
    for n, arrays in enumerate((medmnist, keras)):
        np.savez(tmp_path / f"{n}.npz", **arrays)
        train, test = opened(tmp_path / f"{n}.npz")
        assert (len(train), len(test)) == (12, 4)
        assert train.classes == test.classes == ["0", "1", "2"]
        assert train.labels.tolist() == y.tolist()
        assert np.array_equal(train.read(5)[..., 1], x[5])


def test_one_picture_is_not_taken_for_three_gray_ones(tmp_path):
    for shape_ in ((3, 9, 7), (9, 7, 3)):
        np.save(tmp_path / "x.npy", np.zeros(shape_, np.uint8))
        with pytest.raises(UserError, match="one image of shape"):
            opened(tmp_path / "x.npy")
