"""Broken images: written down, replaced by the next, and too many of them end the run."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from selfsight.batch import Normalization
from selfsight.data.bad import BadImages, read_bad
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.source import BadImage
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError
from selfsight.evaluate.features import plain_views
from selfsight.evaluate.overlap import fingerprints
from selfsight.train.loader import ViewLoader
from selfsight.views.recipe import ViewGroup
from tests.conftest import TINY

DIGITS = load_digits()
CPU = torch.device("cpu")
GROUPS = [ViewGroup(count=2, size=8, flip=0.5, jitter=1.0, brightness=0.4)]


def make_folder(root: Path, count: int, broken: set[int]) -> Path:
    """Digits as PNG files in a folder for each class, some of them cut short."""
    for n in range(count):
        path = make_one(root, n)
        if n in broken:
            path.write_bytes(path.read_bytes()[:50])
    return root


def make_one(root: Path, n: int) -> Path:
    path = root / str(DIGITS.target[n]) / f"{n:04}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((DIGITS.images[n] * 15).astype(np.uint8)).save(path)
    return path


def images_of(root: Path, in_memory: bool, most: float = 1.0, **keys) -> Images:
    config = DataConfig(
        path=str(root), in_memory=in_memory, labels=True, test_fraction=0.01, **keys
    )
    source = open_source(config, "train")
    return Images(source, config, CPU, BadImages(root.parent / "bad.txt", len(source), most))


def batches(images: Images, start: int = 0, stop: int = 6) -> list:
    loader = ViewLoader(
        images, GROUPS, batch_size=8, seed=0, normalization=Normalization((0,) * 3, (1,) * 3)
    )
    return [batch for (batch,) in loader.steps(start, stop)]


@pytest.mark.parametrize("in_memory", [False, True])
def test_broken_images_are_replaced_by_the_next(tmp_path, in_memory):
    whole = make_folder(tmp_path / "whole" / "images", 30, set())
    damaged = make_folder(tmp_path / "damaged" / "images", 30, {3, 4, 20})
    good, bad = images_of(whole, in_memory), images_of(damaged, in_memory)
    names = [Path(bad.source.name(i)).name for i in range(len(bad))]
    broken = {i for i, name in enumerate(names) if name in ("0003.png", "0004.png", "0020.png")}
    met = 0
    for a, b in zip(batches(good), batches(bad), strict=True):
        for n, (i, j) in enumerate(zip(a.index.tolist(), b.index.tolist(), strict=True)):
            expected = i
            while expected in broken:
                expected = (expected + 1) % len(bad)
            assert j == expected
            met += j != i
            # the label and the views are those of the image that is shown
            assert b.labels[n] == bad.source.labels[j]
            alone = ViewLoader(
                good, GROUPS, batch_size=8, seed=0, normalization=Normalization((0,) * 3, (1,) * 3)
            )
            epoch = b.keys.epoch
            view = alone.batch_of(epoch, np.array([j])).views[0][0]
            assert torch.allclose(b.views[0][n], view, atol=1e-6)
    assert met > 0
    lines = read_bad(tmp_path / "damaged" / "bad.txt")
    assert sorted(Path(line.split("\t")[0]).name for line in lines) == [
        "0003.png",
        "0004.png",
        "0020.png",
    ]
    assert all("truncated" in line.split("\t")[1] for line in lines)
    assert read_bad(tmp_path / "whole" / "bad.txt") == []


@given(st.sets(st.integers(0, 19), max_size=19), st.integers(0, 19))
@settings(max_examples=50, deadline=None)
def test_the_next_whole_image(broken, i):
    class Source:
        classes = labels = None

        def __len__(self):
            return 20

        def read(self, n):
            if n in broken:
                raise OSError("gone")
            return np.full((2, 2, 3), n, np.uint8)

        def name(self, n):
            return f"image {n}"

    class Counted:
        def note(self, error):
            noted.append(error.name)

    noted: list[str] = []
    images = Images(Source(), DataConfig(in_memory=False), CPU, Counted())
    expected = next(n % 20 for n in range(i, i + 20) if n % 20 not in broken)
    for _ in range(2):
        taken, pixels = images.decode(i)
        assert taken == expected
        assert (pixels == taken).all()
    assert len(noted) == len(set(noted)) == (expected - i) % 20


def test_an_image_that_breaks_after_the_check_of_an_evaluation_is_an_error(tmp_path):
    """A stand-in would have another image's label: what is known is left out, no more."""
    images = images_of(make_folder(tmp_path / "images", 30, {3}), in_memory=False)
    fingerprints(images)
    assert len(images.broken()) == 1
    checked = images.without(images.broken())
    assert len(checked) == len(images) - 1
    Path(checked.source.name(5)).write_bytes(b"")
    with pytest.raises(BadImage, match="the file is empty"):
        checked.decode(5)
    assert images.decode(next(iter(images.broken())))[0] not in images.broken()  # training goes on


def test_an_image_that_breaks_before_it_is_decoded_is_an_error(tmp_path):
    """Images that are decoded at their first use: what is left out by then is left out, no more."""
    root = make_folder(tmp_path / "images", 30, {3})
    config = DataConfig(path=str(root))
    source = open_source(config, "train")
    images = Images(source, config, CPU, BadImages(None, len(source), 0.5), lazy=True)
    images.mark_bad(3, BadImage(source.name(3), "truncated"))
    for checked in (images.without(images.broken()), images.without([])):
        Path(checked.source.name(5)).write_bytes(b"")
        with pytest.raises(BadImage):
            checked.tensor  # noqa: B018


@pytest.mark.parametrize("in_memory", [False, True])
def test_the_check_while_training_takes_the_labels_of_what_is_shown(tmp_path, in_memory):
    images = images_of(make_folder(tmp_path / "images", 40, {4, 9}), in_memory)
    rows = np.arange(len(images))
    shown = torch.cat(list(plain_views(images, 8, rows)))
    for n, i in enumerate(images.replace_bad(rows)):
        expected = images.decode(int(i))[1]
        assert np.array_equal((shown[n] * 255).round().permute(1, 2, 0).numpy(), expected)
    cut = [i for i in rows if os.path.getsize(images.source.name(i)) == 50]
    assert np.flatnonzero(images.replace_bad(rows) != rows).tolist() == cut != []


def test_without_patience_a_broken_image_is_an_error(tmp_path):
    root = make_folder(tmp_path / "images", 30, {7})
    config = DataConfig(path=str(root), in_memory=False)
    images = Images(open_source(config, "train"), config, CPU)
    with pytest.raises(BadImage, match=r"0007\.png: truncated"):
        batches(images)


def test_too_many(tmp_path):
    file = tmp_path / "run" / "bad_images.txt"
    bad = BadImages(file, 1000, 0.002)
    bad.note(BadImage("a.jpg", "the file is empty"))
    bad.note(BadImage("a.jpg", "the file is empty"))
    BadImages(file, 1000, 0.002).note(BadImage("b\tc.jpg", "truncated"))  # another process
    assert read_bad(file) == ["a.jpg\tthe file is empty", "b c.jpg\ttruncated"]
    for _ in range(2):  # no part of a name ends a line
        BadImages(tmp_path / "odd.txt", 2, 0.5).note(BadImage("a\u2028\x0cb.jpg", "x\r\ny"))
    with pytest.raises(UserError, match=r"data\.max_bad=0\.002: 3 of 1,000 .* 2 may be.*d\.jpg: x"):
        bad.note(BadImage("d.jpg", "x"))
    assert len(read_bad(file)) == 3


def test_a_run_stops_at_too_many_and_goes_on_with_more_patience(tmp_path, command):
    make_folder(tmp_path / "images", 200, {11, 60})
    keys = ["data.path=images", "data.in_memory=false", "epochs=2", "batch_size=32", "device=cpu"]
    keys += ["evaluate.every_epochs=0", "views.0.size=8"]
    first = command("pretrain", "digits/simclr", "--run", "run", *keys, cwd=tmp_path)
    assert first.returncode == 2, first.stderr
    assert "Traceback" not in first.stderr
    assert "data.max_bad=0.001: 1 of 160 images cannot be used, at most 0 may be" in first.stderr
    again = command(
        "pretrain", "digits/simclr", "--run", "run", *keys, "data.max_bad=0.05", cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
    noted = read_bad(tmp_path / "run" / "bad_images.txt")
    assert {Path(line.split("\t")[0]).name for line in noted} <= {"0011.png", "0060.png"}
    assert f"{len(noted)} broken images were replaced" in again.stdout + again.stderr


@pytest.mark.parametrize("in_memory", ["true", "false"])
def test_evaluation_leaves_broken_training_images_out(tmp_path, in_memory, command):
    make_folder(tmp_path / "whole" / "train", 120, set())
    make_folder(tmp_path / "damaged" / "train", 120, {5, 70})
    for name in ("whole", "damaged"):
        test = tmp_path / name / "test"
        for n in range(120, 160):
            make_one(test, n)
    for n in (5, 70):
        next((tmp_path / "whole").rglob(f"{n:04}.png")).unlink()
    keys = ["data.path=whole", "max_steps=3", "batch_size=32", "device=cpu", *TINY]
    assert command("pretrain", "digits/simclr", *keys, "--run", "run", cwd=tmp_path).returncode == 0
    found = []
    for name in ("whole", "damaged"):
        keys = [f"data.path={name}", f"data.in_memory={in_memory}", "data.max_bad=0.02"]
        done = command("knn", "run", *keys, "--run", name + "-results", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("2 broken training images are left out" in done.stderr) == (name == "damaged")
        assert "118 training images" in done.stdout
        found.append(done.stdout)
    assert found[0] == found[1]  # as if they had never been there
    keys[-1] = "data.max_bad=0.01"
    done = command("knn", "run", *keys, "--run", "other", cwd=tmp_path)
    assert done.returncode == 2
    assert "data.max_bad=0.01: 2 of 120 images cannot be used, at most 1 may be" in done.stderr


def test_a_broken_test_image_is_an_error(tmp_path, command):
    root = make_folder(tmp_path / "data" / "train", 100, set())
    for n in range(100, 120):
        make_one(tmp_path / "data" / "test", n)
    keys = ["data.path=data", "max_steps=2", "batch_size=32", "device=cpu", *TINY]
    assert command("pretrain", "digits/simclr", *keys, "--run", "run", cwd=tmp_path).returncode == 0
    next((root.parent / "test").rglob("0103.png")).write_bytes(b"")
    done = command("knn", "run", "data.max_bad=0.5", cwd=tmp_path)
    assert done.returncode == 2
    assert "0103.png: the file is empty" in done.stderr
