"""Runs that pages are made of: made once, in seconds."""

import csv

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from selfsight.evaluate import protocols
from selfsight.pretraining.config import compose
from selfsight.pretraining.job import pretrain
from tests.conftest import TINY

EVIL = ("</script><img src=x onerror=alert(1)>", "<script>alert(2)</script>", "$$x^2$$")


def trained(folder, *keys, steps=12):
    config = compose("digits/simclr", [*TINY, f"max_steps={steps}", *keys], run=str(folder)).config
    pretrain(config, quiet=True)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A run on 300 digits that was measured by kNN on 90 others."""
    home = tmp_path_factory.mktemp("runs")
    found = load_digits()
    pixels = (found.images[:390, ..., None] * 15).astype(np.uint8)
    train = {"train_images": pixels[90:], "train_labels": found.target[90:390]}
    test = {"test_images": pixels[:90], "test_labels": found.target[:90]}
    np.savez(home / "digits.npz", **train, **test)
    run = trained(home / "digits", f"data.path={home / 'digits.npz'}")
    protocols.knn(run, ["device=cpu"])
    return run


def write_images(folder, first, count):
    """Digits as PNG files, listed with the names of EVIL as classes."""
    folder.mkdir(parents=True)
    found = load_digits()
    rows = [("path", "label")]
    for n in range(first, first + count):
        name = f'it\'s "{n}" <b>&amp; __proto__.png'
        pixels = (found.images[n] * 15).astype("uint8")
        Image.fromarray(pixels).resize((16, 16)).convert("RGB").save(folder / name)
        rows.append((name, EVIL[n % 3]))
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "list.csv"


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """A measured run whose paths and classes are HTML, and its images."""
    home = tmp_path_factory.mktemp("hostile")
    train, test = write_images(home / "a'<i>", 0, 90), write_images(home / "test", 90, 36)
    keys = [f"data.path={train}", f"data.test_path={test}", "batch_size=30"]
    run = trained(home / "<u>run's", *keys, "views.0.size=16", steps=3)
    protocols.knn(run, ["device=cpu"])
    return run


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory):
    """A run on images without labels, of more bits and bands than three."""
    home = tmp_path_factory.mktemp("unlabelled")
    pixels = (load_digits().images[:80, ..., None] * np.linspace(1000, 4000, 12)).astype(np.uint16)
    np.save(home / "bands.npy", pixels)
    numbers = [f"data.{key}={[value] * 12}" for key, value in (("mean", 0.3), ("std", 0.4))]
    keys = [f"data.path={home / 'bands.npy'}", "data.channels=12", "data.bits=16", *numbers]
    views = ["views=multispectral-small", "views.0.size=16", "batch_size=20"]
    return trained(home / "run", *keys, *views, steps=3)
