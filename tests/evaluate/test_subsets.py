"""Which labels may be used, and whether two splits share images."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.labels import hold_out
from selfsight.data.source import Subset
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError
from selfsight.evaluate.overlap import compare, fingerprints
from selfsight.evaluate.subsets import draw, listed

CPU = torch.device("cpu")
labels_of = st.lists(st.integers(0, 4), min_size=6, max_size=200).map(lambda x: np.array(x))


@given(labels_of, st.integers(0, 1000), st.floats(0.001, 1), st.floats(0.001, 1))
@settings(max_examples=100)
def test_fractions_are_stratified_and_nested(labels, seed, a, b):
    small, large = draw(labels, seed, min(a, b)).rows, draw(labels, seed, max(a, b)).rows
    assert set(small) <= set(large)
    for c in np.unique(labels):
        there = int((labels == c).sum())
        assert (labels[small] == c).sum() == max(1, round(min(a, b) * there))


@given(labels_of, st.integers(0, 1000), st.integers(1, 9))
@settings(max_examples=100)
def test_shots_are_balanced_and_nested(labels, seed, shots):
    few, more = draw(labels, seed, shots=shots).rows, draw(labels, seed, shots=shots + 1).rows
    assert set(few) <= set(more)
    for c in np.unique(labels):
        assert (labels[few] == c).sum() == min(shots, (labels == c).sum())


@given(labels_of, st.integers(0, 1000), st.floats(0.01, 0.99))
@settings(max_examples=100)
def test_a_validation_part_leaves_every_class_something(labels, seed, share):
    held = hold_out(labels, share, seed)
    for c in np.unique(labels):
        count, there = int(held[labels == c].sum()), int((labels == c).sum())
        assert count == min(there - 1, max(1, round(share * there)))


def test_the_subset_of_a_seed_is_the_same_everywhere():
    """A stored value: another machine, rank or version must draw these images and no others."""
    source = open_source(DataConfig(), "train")
    labels = np.array([source.labels[i] for i in range(len(source))])
    tenth = draw(labels, 0, 0.1)
    assert len(tenth.rows) == 142
    assert tenth.sha256 == hashlib.sha256(tenth.rows.astype("<i8").tobytes()).hexdigest()
    assert tenth.sha256.startswith("84f78a4dd3e8")
    assert draw(labels, 1, 0.1).sha256 != tenth.sha256
    assert draw(labels, 0).rows.tolist() == list(range(len(labels)))


@pytest.fixture
def folder(tmp_path):
    """Two classes of three images; the names of the first of each class are equal."""
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for n in range(3):
            name = f"{label}_{n}.png" if n else "same.png"
            pixels = np.random.default_rng([n, len(label), ord(label[0])])
            image = Image.fromarray(pixels.integers(0, 256, (12, 12, 3), np.uint8))
            image.save(tmp_path / "train" / label / name)
    return tmp_path


def names(source, subset) -> list[str]:
    return [source.name(int(i)).rpartition("train/")[2] for i in subset.rows]


def test_a_list_names_images_in_any_of_the_usual_ways(folder):
    source = open_source(DataConfig(path=str(folder), labels=False), "train")
    path = folder / "list.txt"
    whole = folder / "train" / "dog" / "dog_2.png"
    path.write_text(f"cat_1.png\n\ncat/same.png 0\n./dog/same.png\n{whole}\n")
    assert names(source, listed(source, str(path))) == [
        "cat/cat_1.png",
        "cat/same.png",
        "dog/dog_2.png",
        "dog/same.png",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat_1.png\nbird.png\n", "line 2: 'bird.png' is no image"),
        ("at_1.png", "line 1: 'at_1.png' is no image"),
        ("same.png", "fits 2 images"),
        ("cat_1.png\ncat/cat_1.png", "line 2: names the image of line 1 again"),
        ("\n \n", "names no image"),
    ],
)
def test_a_list_that_is_wrong_is_refused(folder, text, message):
    (folder / "list.txt").write_text(text)
    source = open_source(DataConfig(path=str(folder), labels=False), "train")
    with pytest.raises(UserError, match=message):
        listed(source, str(folder / "list.txt"))
    with pytest.raises(UserError, match="cannot be read"):
        listed(source, str(folder / "missing.txt"))


# Overlap ------------------------------------------------------------------------------------------


def images(path, split: str, **keys) -> Images:
    config = DataConfig(path=str(path), **keys)
    return Images(open_source(config, split), config, CPU)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def overlap_of(path, **keys):
    return compare(*(fingerprints(images(path, split, **keys)) for split in ("train", "test")))


@pytest.mark.parametrize("in_memory", [True, False])
def test_shared_pixels_are_found(tmp_path, in_memory):
    train, test = noise(20, 12, 12, 3), noise(7, 12, 12, 3, seed=1)
    test[[2, 5]] = train[[11, 3]]
    file = tmp_path / "a.npz"
    np.savez(file, train_x=train, train_y=np.arange(20) % 2, test_x=test, test_y=np.arange(7) % 2)
    found = overlap_of(file, in_memory=in_memory)
    assert (found.paths, found.contents, found.similar) == (0, 2, 2)
    assert found.example == f"{file} test_x 2"


def test_shared_files_are_found_by_path_and_by_content(folder, tmp_path):
    (folder / "test").mkdir()
    (folder / "test" / "cat").symlink_to(folder / "train" / "cat")
    (folder / "test" / "dog").mkdir()
    copy = (folder / "train" / "dog" / "dog_1.png").read_bytes()
    (folder / "test" / "dog" / "other.png").write_bytes(copy)
    found = overlap_of(folder)
    assert (found.paths, found.contents) == (3, 4)


def test_a_copy_in_another_format_only_looks_alike(tmp_path):
    """Reported, not enforced: bytes differ, the picture does not; most such copies are found."""
    for n in range(30):
        small = Image.fromarray(noise(6, 6, 3, seed=n)).resize((96, 80), Image.Resampling.BICUBIC)
        for split, ending in (("train", "png"), ("test", "jpg")):
            (tmp_path / split / "x").mkdir(parents=True, exist_ok=True)
            small.save(tmp_path / split / "x" / f"{n}.{ending}", quality=95)
    found = overlap_of(tmp_path, in_memory=False)
    assert (found.paths, found.contents) == (0, 0)
    assert found.similar > 15


def test_the_digits_share_no_image():
    config = DataConfig()
    both = [Images(open_source(config, s), config, CPU) for s in ("train", "test")]
    found = compare(*map(fingerprints, both))
    assert (found.paths, found.contents) == (0, 0)


def test_a_digest_names_content_not_place(tmp_path):
    pixels = noise(5, 8, 8, 3)
    np.save(tmp_path / "a.npy", pixels)
    np.save(tmp_path / "b.npy", pixels)
    a, b = (fingerprints(images(tmp_path / f"{n}.npy", "train")).digest for n in "ab")
    pixels[4, 0, 0, 0] ^= 1
    np.save(tmp_path / "b.npy", pixels)
    assert a == b != fingerprints(images(tmp_path / "b.npy", "train")).digest


def test_a_part_keeps_what_is_decoded():
    config = DataConfig()
    whole = Images(open_source(config, "train"), config, CPU)
    rows = np.array([5, 2, 900])
    some = whole.part(rows)
    assert isinstance(some.source, Subset)
    assert torch.equal(some.tensor, whole.tensor[torch.from_numpy(rows)])
    assert some.labels.tolist() == [whole.source.labels[int(i)] for i in rows]
    assert some.source.name(1) == whole.source.name(2)
    assert len(some) == 3
    assert len(whole) == 1437
