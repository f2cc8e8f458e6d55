"""torchvision's data sets by name: each works or is refused by name."""

import inspect
import pickle

import numpy as np
import pytest
import scipy.io
import torchvision.datasets as datasets
from PIL import Image

from selfsight.data.config import DataConfig
from selfsight.data.sources.open import open_source
from selfsight.data.sources.torchvision_sets import MORE, REFUSED, SPLITS, Torchvision
from selfsight.errors import UserError

WORK = sorted(set(datasets.__all__) - set(REFUSED))


def test_every_data_set_of_torchvision_is_known():
    assert set(REFUSED) <= set(datasets.__all__)
    assert set(SPLITS) | set(MORE) <= set(WORK)
    words = """FakeData CIFAR10 CIFAR100 EMNIST FashionMNIST QMNIST MNIST KMNIST StanfordCars STL10
        SUN397 SVHN SEMEION Omniglot Flowers102 ImageNet Caltech101 Caltech256 USPS Places365
        INaturalist LFWPeople Food101 DTD FER2013 GTSRB CLEVRClassification OxfordIIITPet PCAM
        Country211 FGVCAircraft EuroSAT RenderedSST2 Imagenette"""
    assert sorted(words.split()) == WORK


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_set_without_classes_is_refused_by_name(name):
    with pytest.raises(
        UserError, match=f"torchvision:{name}: its samples are not images with a cl"
    ):
        Torchvision(name, ".", "train")


@pytest.mark.parametrize("name", WORK)
def test_the_arguments_of_each_are_its_own(name, monkeypatch):
    """Each is made with arguments that its signature takes, others for testing, or is divided."""
    real, calls = getattr(datasets, name), []
    signature = inspect.signature(real)

    class Fake:
        classes = ("a", "b")

        def __init__(self, *arguments, **keys):
            calls.append(signature.bind(*arguments, **keys).arguments)
            self.targets = [0, 1] * 5

        def __len__(self):
            return 10

    Fake.__signature__ = signature
    monkeypatch.setattr(datasets, name, Fake)
    train, test = (
        open_source(DataConfig(source=f"torchvision:{name}"), s) for s in ("train", "test")
    )
    assert train.classes == ["a", "b"]
    undivided = calls[0] == calls[1]
    assert (len(train), len(test)) == ((8, 2) if undivided else (10, 10))
    assert undivided == (
        name in ["FakeData", "SEMEION", "Omniglot", "SUN397", "Caltech101", "Caltech256", "EuroSAT"]
    )


def test_usps(tmp_path, monkeypatch):
    """It has no `classes`; a file of torchvision's format, without its checksum."""
    import bz2

    rng = np.random.default_rng(0)
    for split in ("usps.bz2", "usps.t.bz2"):
        rows = []
        for n in range(6):
            values = " ".join(f"{i + 1}:{v:.3f}" for i, v in enumerate(rng.uniform(-1, 1, 256)))
            rows.append(f"{n % 3 + 1} {values} \n")
        (tmp_path / split).write_bytes(bz2.compress("".join(rows).encode()))
    monkeypatch.setattr("torchvision.datasets.usps.download_url", lambda *a, **k: None)
    train, test = opened("USPS", tmp_path)
    assert train.classes == test.classes == ["0", "1", "2"]
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert train.read(0).shape == (16, 16, 3)


def test_svhn(tmp_path, monkeypatch):
    """Its labels are called `labels`, and its split split=."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), np.uint8)
    for split in ("train", "test"):
        labels = np.array([[1], [10], [2], [1]], np.uint8)  # 10 is the digit 0
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", {"X": pixels, "y": labels})
    monkeypatch.setattr("torchvision.datasets.SVHN._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.SVHN.download", lambda self: None)
    train, test = opened("SVHN", tmp_path)
    assert (train.classes, test.classes) == (["0", "1", "2"],) * 2
    assert train.labels.tolist() == [1, 0, 2, 1]
    assert np.array_equal(train.read(2), pixels[..., 2])


def test_eurosat_is_divided(tmp_path, monkeypatch):
    """It has neither train= nor split=."""
    for c in ("AnnualCrop", "Forest"):
        for n in range(5):
            path = tmp_path / "eurosat" / "2750" / c / f"{n}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (n, 0, 0)).save(path)
    monkeypatch.setattr("torchvision.datasets.EuroSAT.download", lambda self: None)
    train, test = opened("EuroSAT", tmp_path)
    assert train.classes == test.classes == ["AnnualCrop", "Forest"]
    assert (np.bincount(train.labels).tolist(), np.bincount(test.labels).tolist()) == (
        [4, 4],
        [1, 1],
    )


def test_cifar10_as_torchvision_writes_it(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    data = np.random.default_rng(0).integers(0, 256, (4, 3072), np.uint8)
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [3, 1, 0, 9]}))
    names = [f"class{n}" for n in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    for check in ("torchvision.datasets.cifar.check_integrity",):
        monkeypatch.setattr(check, lambda *a, **k: True)
    train, test = opened("CIFAR10", tmp_path)
    assert (len(train), len(test)) == (20, 4)
    assert train.classes == names, "all of them, though only four occur"
    assert train.labels.tolist() == [3, 1, 0, 9] * 5


def opened(name, root):
    config = DataConfig(source=f"torchvision:{name}", path=str(root))
    return open_source(config, "train"), open_source(config, "test")
