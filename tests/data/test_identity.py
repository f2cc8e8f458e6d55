"""Whether images are still those that a run began with."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsight.data.config import DataConfig
from selfsight.data.identity import SAMPLE, changes, fingerprint, identity
from selfsight.data.pack.write import PackConfig, pack
from selfsight.data.sources.open import open_source


def opened(**keys):
    return open_source(DataConfig(**keys), "train")


def told(before, **keys) -> str:
    source = opened(**keys)
    return "; ".join(changes(before, identity(source), source))


def pngs(folder: Path, names, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    for name in names:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    pngs(
        tmp_path / "in",
        [f"{split}/{c}/{i}" for split in ("train", "test") for c in "ab" for i in range(5)],
    )
    return tmp_path / "in"


def change_count(folder):
    pngs(folder, ["train/a/new"])
    return "10 -> 11 images"


def change_classes(folder):
    pngs(folder, ["train/c/new"])
    return "10 -> 11 images; 2 -> 3 classes"


def change_labels(folder):
    (folder / "train/a/4.png").rename(folder / "train/b/a4.png")
    return "other labels, or other names of classes; other file names, or another order"


def change_class_name(folder):
    (folder / "train/b").rename(folder / "train/c")
    return "other labels, or other names of classes; other file names, or another order"


def change_names(folder):
    (folder / "train/a/4.png").rename(folder / "train/a/5.png")
    return "other file names, or another order"


def change_content(folder):
    pngs(folder, ["train/b/3"], seed=9)
    return f"other content of the same names, such as {folder / 'train/b/3.png'}"


def change_test_split(folder):
    shutil.rmtree(folder / "test/b")
    pngs(folder, ["test/b/0"])
    return ""


def change_times(folder):
    os.utime(folder / "train/a/0.png", (1, 1))
    shutil.copy(folder / "train/a/0.png", folder / "copy")
    os.replace(folder / "copy", folder / "train/a/0.png")
    return ""


def lose_for_a_moment(folder):
    (folder / "train/a/0.png").write_bytes(b"")
    (folder / "train/a/0.png").unlink()
    (folder / "train/a/0.png").symlink_to("/dev/null")  # an error of reading, no other content
    return ""


CHANGES = [
    change_count,
    change_classes,
    change_labels,
    change_class_name,
    change_names,
    change_content,
    change_test_split,
    change_times,
    lose_for_a_moment,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder(folder, change):
    before = identity(opened(path=str(folder)))
    assert told(before, path=str(folder)) == ""
    expected = change(folder)
    assert told(before, path=str(folder)) == expected


@pytest.mark.parametrize("kind", ["folder", "list", "arrays", "several"])
def test_another_path_to_the_same_images(folder, monkeypatch, kind):
    if kind == "list":
        (folder / "in.txt").write_text(
            "".join(f"train/{c}/{i}.png {c}\n" for i in range(5) for c in "ab")
        )
        paths = ["in.txt"]
    elif kind == "arrays":
        np.savez(folder / "in.npz", images=np.zeros((9, 8, 8, 3), np.uint8), labels=np.arange(9))
        paths = ["in.npz"]
    else:
        paths = [""] if kind == "folder" else ["train/a", "train/b"]
    found = []
    for where, start in (
        (folder, folder),
        (".", folder),
        ("..", folder / "train"),
        ("in", folder.parent),
    ):
        monkeypatch.chdir(start)
        path = tuple(os.path.join(where, p) for p in paths)
        found.append(identity(opened(path=path if len(path) > 1 else path[0])))
    moved = folder.with_name("moved")
    folder.rename(moved)
    path = tuple(str(moved / p) for p in paths)
    found.append(identity(opened(path=path if len(path) > 1 else path[0])))
    assert all(other == found[0] for other in found)


def test_arrays_are_compared_pixel_for_pixel(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (1000, 8, 8, 3), np.uint8)
    labels, path = np.arange(1000) % 3, str(tmp_path / "in.npz")
    np.savez(path, images=images, labels=labels)
    before = identity(opened(path=path))
    assert told(before, path=path) == ""
    np.savez(path, images=images[:900], labels=labels[:900])
    assert told(before, path=path) == "799 -> 720 images"  # a fifth is held out as test split
    images[:, 0, 0, 0] ^= 1
    np.savez(path, images=images, labels=labels)
    assert told(before, path=path) == "other pixels"
    images[:, 0, 0, 0] ^= 1
    np.savez(path, images=images, labels=labels[::-1])
    assert told(before, path=path) == "other labels, or other names of classes"
    np.savez(path, images=images)
    assert told(before, path=path) == "799 -> 1,000 images; 3 -> no classes"


def test_a_list_of_other_labels(folder):
    path = folder / "in.txt"
    path.write_text("".join(f"train/a/{i}.png {i % 2}\n" for i in range(5)))
    before = identity(opened(path=str(path)))
    path.write_text("".join(f"train/a/{i}.png {i // 3}\n" for i in range(5)))
    assert "other labels" in told(before, path=str(path))


@pytest.mark.parametrize("raw", [False, True])
def test_a_pack_that_was_made_anew(folder, raw):
    out = folder.parent / "out"
    how = DataConfig(path=str(folder)), PackConfig(raw=raw, size=8), out, lambda *_: None
    pack(*how)
    before = identity(opened(path=str(out)))
    pngs(folder, ["train/b/3"], seed=9)
    shutil.rmtree(out)
    pack(*how)
    assert told(before, path=str(out)) == "other pixels"


def test_a_limit_and_several_sources(folder):
    np.savez(folder.parent / "a.npz", images=np.zeros((9, 8, 8, 3), np.uint8))
    several = {"path": (str(folder / "train"), str(folder.parent / "a.npz")), "labels": False}
    whole, part = identity(opened(**several)), identity(opened(**several, limit=5))
    assert (whole["images"], part["images"]) == (19, 5)
    assert whole["contents"] is None
    assert len(whole["sample"]) == 19
    assert told(part, **several, limit=5) == ""


def test_a_sample_reads_few_of_many_images(tmp_path, monkeypatch):
    pngs(tmp_path, [f"{i:03}" for i in range(2 * SAMPLE)])
    source, seen = opened(path=str(tmp_path)), []
    read = source.read
    monkeypatch.setattr(source, "read", lambda i: seen.append(i) or read(i))
    identity(source)
    assert len(seen) == SAMPLE
    assert {0, 2 * SAMPLE - 1} <= set(seen)


class Pixels:
    def __init__(self, images, labels, names="digit"):
        self.images, self.labels, self.names = images, np.array(labels), names
        self.classes = [str(n) for n in range(int(self.labels.max()) + 1)]

    def __len__(self):
        return len(self.images)

    def read(self, i):
        return self.images[i]

    def name(self, i):
        return f"{self.names} {i}"


def test_a_fingerprint_names_what_two_processes_have_differently():
    images = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    whole = fingerprint(Pixels(images, [0, 1, 2, 1, 0]))
    assert whole["images"] == 5
    assert whole == fingerprint(Pixels(images.copy(), [0, 1, 2, 1, 0]))
    for key, other in {
        "data's labels": Pixels(images, [0, 1, 2, 1, 1]),
        "data's names": Pixels(images, [0, 1, 2, 1, 0], "letter"),
        "data's contents": Pixels(images + 1, [0, 1, 2, 1, 0]),
    }.items():
        found = fingerprint(other)
        assert [name for name in whole if whole[name] != found[name]] == [key]
    fewer = fingerprint(Pixels(images[:4], [0, 1, 2, 1]))
    assert all(whole[name] != fewer[name] for name in whole)


def test_fingerprints_of_the_same_folder_at_two_places_are_equal(folder, tmp_path):
    before = fingerprint(opened(path=str(folder)))
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(opened(path=str(tmp_path / "copy"))) == before
    (tmp_path / "copy/train/a/0.png").write_bytes(b"damaged")
    now = fingerprint(opened(path=str(tmp_path / "copy")))
    assert [key for key in now if now[key] != before[key]] == ["data's contents"]
