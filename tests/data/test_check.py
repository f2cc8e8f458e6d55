"""`selfsight check`: everything that is wrong with a source is found, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfsight.data.check import check
from selfsight.data.config import DataConfig


def quiet(what: str, done: int, total: int) -> None:
    assert 0 < done <= total


def save(path: Path, number: int, width: int = 9, height: int = 7) -> Path:
    """A picture that no other number has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(number)
    Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


def report(root: Path, **keys):
    return check(DataConfig(path=str(root), **keys), quiet)


def test_a_part_of_a_large_split_is_looked_at(tmp_path):
    for n in range(12):
        save(tmp_path / "train" / "abc"[n % 3] / f"{n}.png", n)
    save(tmp_path / "val" / "a" / "0.png", 100)
    train, test = check(DataConfig(path=str(tmp_path)), quiet, most=5).splits
    assert (len(train.whole), len(train.source), len(train.sizes)) == (12, 5, 5)
    assert (len(test.whole), len(test.source)) == (1, 1)
    assert train.counts() == [("a", 4), ("b", 4), ("c", 4)], "of the whole split"
    again = check(DataConfig(path=str(tmp_path)), quiet, most=5).splits[0]
    assert np.array_equal(train.contents, again.contents), "the same images each time"


def test_a_clean_folder(tmp_path):
    for n in range(6):
        save(tmp_path / "train" / "ab"[n % 2] / f"{n}.png", n, width=10 + n)
    save(tmp_path / "val" / "a" / "0.png", 100)
    found = report(tmp_path)
    assert found.problems == 0
    train, test = found.splits
    assert (len(train.source), len(test.source)) == (6, 1)
    assert train.counts() == [("a", 3), ("b", 3)]
    assert sorted(train.sizes.tolist()) == [[7, 10 + n] for n in range(6)]


def test_everything_wrong_is_found(tmp_path):
    for n in range(4):
        save(tmp_path / "train" / f"{n}.png", n)
    (tmp_path / "train" / "4.png").write_bytes(b"")
    (tmp_path / "train" / "5.jpg").write_bytes(b"text")
    (tmp_path / "train" / "6.png").write_bytes((tmp_path / "train" / "0.png").read_bytes())
    (tmp_path / "train" / "7.jpg").mkdir()
    save(tmp_path / "train" / "7.jpg" / "inside.png", 8)
    save(tmp_path / "test" / "new.png", 9)
    (tmp_path / "test" / "old.png").write_bytes((tmp_path / "train" / "2.png").read_bytes())
    found = report(tmp_path)
    train, test = found.splits
    assert [(Path(name).name, reason) for name, reason in train.broken] == [
        ("4.png", "the file is empty"),
        ("5.jpg", "not an image, or of a format that Pillow cannot read"),
    ]
    assert [[Path(train.source.name(i)).name for i in group] for group in train.twins] == [
        ["0.png", "6.png"]
    ]
    assert [(Path(a).name, Path(b).name) for a, b in found.shared] == [("old.png", "2.png")]
    assert not test.broken
    assert found.problems == 4


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
@settings(max_examples=20, deadline=None)
def test_duplicates_are_groups_of_equal_images(tmp_path_factory, numbers):
    root = tmp_path_factory.mktemp("images")
    for n, number in enumerate(numbers):
        save(root / f"{n:02}.png", number)
    (split,) = report(root).splits
    expected = {tuple(n for n, x in enumerate(numbers) if x == y) for y in set(numbers)}
    assert {tuple(group) for group in split.twins} == {g for g in expected if len(g) > 1}


def test_the_command(tmp_path, command):
    for n in range(30):
        save(tmp_path / "data" / f"{n % 3}" / f"{n:02}.png", n)
    good = command("check", "data", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    assert "train: 24 images, 0 of them broken" in good.stdout
    assert "3 classes of" in good.stdout
    assert "Nothing is wrong." in good.stdout
    (tmp_path / "data" / "0" / "00.png").write_bytes(b"\x89PNG")
    bad = command("check", "data", cwd=tmp_path)
    assert bad.returncode == 1
    assert "00.png" in bad.stdout
    assert "1 problems" in bad.stdout
    missing = command("check", "nowhere", cwd=tmp_path)
    assert missing.returncode == 2
    reason = "no such file or folder; give the path where it is now"
    assert missing.stderr == f"selfsight: data.path=nowhere: {reason}\n"


@pytest.mark.parametrize("raw", [False, True])
def test_a_damaged_pack_is_found(tmp_path, raw, command):
    for n in range(8):
        save(tmp_path / "data" / f"{n}.png", n, 20, 20)
    options = ["--size", "16", *(["--raw"] if raw else [])]
    done = command("pack", "data", "-o", "packed", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert command("check", "packed", cwd=tmp_path).returncode == 0
    blob = next((tmp_path / "packed").rglob("images.npy" if raw else "images.bin"))
    content = bytearray(blob.read_bytes())
    content[-5] ^= 255
    blob.write_bytes(content)
    bad = command("check", "packed", cwd=tmp_path)
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert "7.png): damaged" in bad.stdout


def test_what_both_splits_share_is_found_in_a_pack(tmp_path, command):
    """The pack's copies differ from nothing: its test image was made from a training image."""
    for n in range(6):
        save(tmp_path / "data" / "train" / f"{n}.png", n)
    (tmp_path / "data" / "test").mkdir()
    twin = (tmp_path / "data" / "train" / "3.png").read_bytes()
    (tmp_path / "data" / "test" / "old.png").write_bytes(twin)
    assert command("pack", "data", "-o", "packed", cwd=tmp_path).returncode == 0
    done = command("check", "packed", cwd=tmp_path)
    assert done.returncode == 1
    assert "1 test images that are among the training images" in done.stdout
