"""Evaluations from Python: of modules and features, with the numbers of the commands."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import selfsight
from selfsight import UserError
from selfsight.data.sources.arrays import Digits
from selfsight.evaluate.knn import knn_accuracy
from selfsight.evaluate.linear import linear_probe
from selfsight.evaluate.protocols import read_results
from tests.conftest import TINY


def digits(split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    source = Digits(split)
    return np.stack([source.read(i) for i in range(count)]), source.labels[:count]


TRAIN, TEST = digits("train", 400), digits("test", 100)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(home):
    return selfsight.pretrain(
        selfsight.compose("digits/simclr", [*TINY, "max_steps=4"], str(home / "a")).config,
        quiet=True,
    )


@pytest.fixture(scope="module")
def arrays(home):
    """The same images as a file."""
    path = home / "digits.npz"
    parts = {"train_images": TRAIN[0], "train_labels": TRAIN[1]}
    np.savez(path, **parts, test_images=TEST[0], test_labels=TEST[1])
    return path


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_a_module_is_measured_as_a_run_is(run, arrays, protocol, tmp_path):
    """The encoder of a run, as a module, and images in memory: the numbers of the run on a file."""
    measure = getattr(selfsight, protocol)
    pixels = protocol == "knn"  # a linear probe of so many takes seconds
    keys = {"data": arrays, "untrained": False, "pixels": pixels}
    expected = measure(run, folder=str(tmp_path / "x"), **keys)
    data = run.config().data
    keys = {"image_size": 16, "data.mean": data.mean, "data.std": data.std, "pixels": pixels}
    found = measure(run.encoder().backbone, train=TRAIN, test=TEST, **keys)
    assert [r.evaluated for r in found] == ["encoder", "pixels"][: 1 + pixels]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.metrics == theirs.metrics
        assert ours.weights_sha256 == theirs.weights_sha256
        assert (ours.protocol, ours.version, ours.kind) == (protocol, theirs.version, theirs.kind)
        assert ours.overlap["compared_with"] == ["training"]  # a module does not know its images
    assert found[0].settings["image_size"] == 16
    # an encoder of the package knows its size and what its pixels are normalised with
    again = measure(run.encoder(), train=TRAIN, test=TEST, pixels=pixels)
    assert [r.metrics for r in again] == [r.metrics for r in found]


def test_a_run_on_images_in_memory(run, arrays, tmp_path):
    expected = selfsight.knn(run, folder=str(tmp_path / "x"), data=arrays)
    found = selfsight.knn(run, train=TRAIN, test=TEST, folder=str(tmp_path / "y"))
    assert [r.metrics for r in found] == [r.metrics for r in expected]
    assert len(read_results(tmp_path / "y")) == 3


@pytest.mark.parametrize("form", ["tensor", "PIL", "paths", "data set"])
def test_images_of_every_form(run, form, tmp_path):
    def formed(pair):
        images, labels = pair
        if form == "tensor":
            return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
        if form == "PIL":
            return [Image.fromarray(image) for image in images], list(labels)
        if form == "data set":
            return list(zip(images, labels, strict=True))
        files = []
        for image in images:
            files.append(tmp_path / f"{len(list(tmp_path.iterdir()))}.png")
            Image.fromarray(image).save(files[-1])
        return files, labels.tolist()

    module, keys = run.encoder().backbone, {"image_size": 16, "pixels": False}
    (expected,) = selfsight.knn(module, train=TRAIN, test=TEST, **keys)
    (found,) = selfsight.knn(module, train=formed(TRAIN), test=formed(TEST), **keys)
    assert found.metrics == expected.metrics


def test_features_are_measured_as_they_are():
    x, x_test = (torch.from_numpy(p[0]).flatten(1).double() for p in (TRAIN, TEST))
    y, y_test = torch.from_numpy(TRAIN[1]), torch.from_numpy(TEST[1])
    (found,) = selfsight.knn(train=(x, TRAIN[1]), test=(x_test.numpy(), y_test))
    assert found.evaluated == "features"
    assert found.data == {"train": 400, "test": 100}
    accuracy = knn_accuracy(x, y, x_test, y_test)
    assert found.metrics == {f"k{k}": value for k, value in accuracy.items()}
    (found,) = selfsight.linear(train=(x, y), test=(x_test, y_test), seed=3)
    assert found.metrics["top1"] == linear_probe(x, y, x_test, y_test, 3).top1


def test_features_with_few_labels(tmp_path):
    x, x_test = (torch.from_numpy(p[0]).flatten(1).double() for p in (TRAIN, TEST))
    names = np.array([f"class {n}" for n in TRAIN[1]])
    names_test = np.array([f"class {n}" for n in TEST[1]])
    folder = str(tmp_path / "results")
    (found,) = selfsight.linear(
        train=(x, names), test=(x_test, names_test), shots=3, folder=folder, pixels=False
    )
    assert found.settings["labels"] == 30
    assert read_results(tmp_path / "results")[0]["metrics"] == found.metrics


class Doubled(nn.Module):
    def forward(self, x):
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)


def test_the_size_of_its_images_is_found(run):
    """Small images are shown as they are; a transformer has a size of its own."""
    import timm

    (found,) = selfsight.knn(Doubled(), train=TRAIN, test=TEST, pixels=False)
    assert found.settings["image_size"] == 8
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=16, num_classes=0)
    (found,) = selfsight.knn(vit, train=TRAIN, test=TEST, pixels=False)
    assert found.settings["image_size"] == 32


def test_a_module_that_moves_is_found_out():
    class Moving(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            return x.mean((2, 3)) + self.count

    with pytest.raises(UserError, match="The encoder changed while its features were read"):
        selfsight.knn(Moving(), train=TRAIN, test=TEST, pixels=False)


class Failing(nn.Module):
    def forward(self, x):
        return x @ x.flatten()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "knn: give an encoder, or features as train= and test="),
        ({"train": TRAIN}, "train and test: give both, or neither"),
        ({"train": TRAIN, "test": TEST}, "features are .N, D. of a float type, found torch.uint8"),
        ({"train": (TRAIN[0], TRAIN[1][:3]), "test": TEST, "encoder": Doubled()}, "3 labels"),
        ({"train": 3, "test": TEST, "encoder": Doubled()}, r"train: give \(images, labels\)"),
        ({"train": TRAIN, "test": TRAIN, "encoder": Doubled()}, "400 test images are among the"),
        ({"train": TRAIN, "test": TEST, "encoder": Failing()}, "in forward: RuntimeError"),
        (
            {"train": TRAIN, "test": TEST, "encoder": Doubled(), "untrained": True},
            "untrained=true: only a run knows its encoder before the first step",
        ),
        (
            {"train": (np.ones((4, 2)), [0, 1, 0, 1]), "test": (np.ones((2, 3)), [0, 1])},
            "features of width 2 .train. and 3 .test.",
        ),
        (
            {"train": (np.ones((4, 2)), [0, 1, 0, 1]), "test": (np.ones((2, 2)), [0, 7])},
            "test: class '7' is not among those of train",
        ),
        ({"encoder": Doubled(), "train": TRAIN, "test": TEST, "ks": 3}, "Unknown key 'ks'"),
    ],
)
def test_a_mistake_names_the_argument(arguments, message):
    with pytest.raises(UserError, match=message):
        selfsight.knn(**arguments)


def test_pixels_are_the_features_that_they_are():
    """An encoder that is the identity scores as the row of the pixels."""

    class Flat(nn.Module):
        def forward(self, x):
            return x.flatten(1)

    keys = {"data.mean": [0, 0, 0], "data.std": [1, 1, 1]}
    encoder, pixels = selfsight.knn(Flat(), train=TRAIN, test=TEST, **keys)
    assert encoder.metrics == pytest.approx(pixels.metrics, abs=0.02)  # stored as float16
