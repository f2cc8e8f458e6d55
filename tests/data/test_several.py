"""Images of several paths, and a share of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfsight.data.check import check
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.pack import write as packing
from selfsight.data.source import content_hash
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError
from selfsight.evaluate.overlap import compare, fingerprints

CPU = torch.device("cpu")


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 6, 3), value, np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path) -> Path:
    """a/ with cats and dogs, b/ with dogs and emus, c/ with none of either."""
    value = 0
    for place in ("a/cat", "a/dog", "b/dog", "b/emu", "c"):
        for n in range(5):
            picture(tmp_path / place / f"{n}.png", value := value + 1)
    return tmp_path


def opened(folder: Path, split: str = "train", **keys):
    keys = {
        key: tuple(str(folder / name) for name in value) if isinstance(value, list) else value
        for key, value in keys.items()
    }
    return open_source(DataConfig(**keys), split)


def test_classes_are_those_of_all_paths(folders):
    both = opened(folders, path=["a", "b"])
    assert both.classes == ["cat", "dog", "emu"]
    assert len(both) == len(both.labels)
    for i in range(len(both)):
        assert both.classes[both.labels[i]] == Path(both.name(i)).parent.name
        assert both.read(i) == Path(both.name(i)).read_bytes()
    # each is divided as it would be alone, and nothing is in both splits
    test = opened(folders, "test", path=["a", "b"])
    alone = [opened(folders, "test", path=[name]) for name in ("a", "b")]
    names = [source.name(i) for source in alone for i in range(len(source))]
    assert [test.name(i) for i in range(len(test))] == names
    assert test.classes == both.classes
    assert len(both) + len(test) == 20
    assert not {both.name(i) for i in range(len(both))} & set(names)


def test_labels_of_some_are_no_labels(folders):
    with pytest.raises(UserError, match="some of these sources have labels and others have none"):
        opened(folders, path=["a", "c"])
    plain = opened(folders, path=["a", "c"], labels=False)
    assert plain.classes is None
    assert len(plain) == 15


def test_lists_have_a_folder_each_or_one_for_all(folders):
    for name in ("a", "b"):
        (folders / f"{name}.txt").write_text("dog/0.png 12\ndog/1.png 1\n")
    lists = {"path": ["a.txt", "b.txt"], "test_path": ["b.txt", "a.txt"]}
    train = opened(folders, **lists, image_dir=["a", "b"], test_image_dir=["b", "a"])
    test = opened(folders, "test", **lists, image_dir=["a", "b"], test_image_dir=["b", "a"])
    assert train.classes == ["1", "12"]
    assert train.labels.tolist() == [1, 0, 1, 0]
    places = ["a/dog/0.png", "a/dog/1.png", "b/dog/0.png", "b/dog/1.png"]
    assert [train.name(i) for i in range(4)] == [str(folders / place) for place in places]
    assert [test.name(i) for i in range(4)] == [str(folders / p) for p in places[2:] + places[:2]]
    one = opened(folders, path=["a.txt", "b.txt"], image_dir=["a"], labels=False)
    assert one.name(3) == str(folders / "a/dog/1.png")
    with pytest.raises(UserError, match=r"data\.image_dir: 3 folders for 2 lists"):
        opened(folders, path=["a.txt", "b.txt"], image_dir=["a", "b", "c"])


def test_two_kinds_and_a_test_split_elsewhere(folders):
    np.savez(folders / "more.npz", images=np.zeros((3, 6, 6, 3), np.uint8))
    mixed = opened(folders, path=["c", "more.npz"], labels=False)
    assert len(mixed) == 8
    assert mixed.read(7).shape == (6, 6, 3)
    train = opened(folders, path=["a"], test_path=["b"])
    assert len(train) == 10, "nothing is held out where a test split is named"
    assert len(opened(folders, "test", path=["a"], test_path=["b"])) == 10
    with pytest.raises(UserError, match=r"data.path=.*nowhere: no such file or folder"):
        opened(folders, path=["a", "nowhere"])


def test_files_are_found_behind_links_and_not_where_they_are_hidden(folders):
    pixels = np.zeros((3, 6, 6, 3), np.uint8)
    for place in ("elsewhere", "arrays/.hidden"):
        (folders / place).mkdir(parents=True)
        np.save(folders / place / "train.npy", pixels)
    (folders / "arrays" / "linked").symlink_to("../elsewhere")
    (folders / "arrays" / "._train.npy").write_bytes(b"a resource fork")
    assert opened(folders, path=["arrays"]).name(0).endswith("arrays/linked/train.npy image 0")
    with pytest.raises(
        UserError, match=r"data\.path=.*/c: contains no files that end in \.parquet"
    ):
        opened(folders, path=["c"], source="parquet")


def test_a_share_is_the_same_whoever_asks(folders):
    whole = opened(folders, path=["a", "b"], labels=False)
    part = opened(folders, path=["a", "b"], labels=False, fraction=0.25)
    names = [part.name(i) for i in range(len(part))]
    assert len(names) == 5
    assert set(names) < {whole.name(i) for i in range(len(whole))}
    again = opened(folders, path=["a", "b"], labels=False, fraction=0.25)
    assert [again.name(i) for i in range(5)] == names
    fewer = opened(folders, path=["a", "b"], labels=False, fraction=0.25, limit=3)
    assert {fewer.name(i) for i in range(3)} < set(names), "the smaller lies inside the larger"


def test_packed_and_checked_as_one(folders, monkeypatch):
    monkeypatch.chdir(folders)
    data = DataConfig(path=("a", "b"), labels=False)
    ((pack, _),) = packing.pack(data, packing.PackConfig(), folders / "pack", lambda *_: None)
    packed = open_source(DataConfig(path=str(pack)), "train")
    assert len(packed) == 20
    hashes = [content_hash((folders / name).read_bytes()) for name in ("a/cat/0.png",)]
    assert hashes[0] in {row.tobytes() for row in packed.origins}
    described = json.loads((pack / "pack.json").read_text())["source"]
    assert described["path"] == [str(folders / "a"), str(folders / "b")]
    report = check(DataConfig(path=(str(pack), "c")), lambda *_: None)
    assert not report.damaged
    assert len(report.splits[0].source) == 25


def test_a_test_image_is_found_in_a_pack_beside_a_folder(folders, monkeypatch):
    """By what it was packed from, though the original has gone; also when both are packed again."""
    monkeypatch.chdir(folders)
    for n in range(5):  # larger than the pack keeps
        pixels = np.random.default_rng(n).integers(0, 255, (90, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folders / "c" / f"{n}.png")
    data = DataConfig(path="c", labels=False)
    ((pack, _),) = packing.pack(data, packing.PackConfig(size=16), folders / "one", lambda *_: None)
    (folders / "test").mkdir()
    (folders / "c/3.png").rename(folders / "test/shared.png")
    both = {"path": (str(pack), "a"), "labels": False}
    again = packing.PackConfig(size=16)
    packs = packing.pack(DataConfig(**both), again, folders / "two", lambda *_: None)
    for keys in (both, {"path": str(packs[0][0]), "labels": False}):
        (pair,) = check(DataConfig(**keys, test_path="test"), lambda *_: None).shared
        assert pair[0].endswith("shared.png")
        train, test = (
            fingerprints(
                Images(open_source(DataConfig(**keys, test_path="test"), split), data, CPU)
            )
            for split in ("train", "test")
        )
        assert compare(train, test).contents == 1


@pytest.mark.parametrize(
    ("source", "says"), [("webdatset", "Did you mean"), ("list", "tar shards")]
)
def test_a_pattern_of_shards_has_one_kind(source, says):
    with pytest.raises(UserError, match=says):
        open_source(DataConfig(source=source, path="shards-{0..1}.tar"), "train")
