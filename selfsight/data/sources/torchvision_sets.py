"""torchvision's data sets by name: CIFAR-10, STL-10 and others whose images have one class each."""

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np

from selfsight.config import near
from selfsight.data.decode import picture
from selfsight.data.labels import as_classes
from selfsight.data.names import NameBlock, numbered
from selfsight.data.source import first_line
from selfsight.data.sources.download import downloads
from selfsight.errors import UserError

# What the samples of sets without a class for each image are instead.
_REFUSED = {
    "boxes, outlines or a text for each image": """CocoCaptions CocoDetection VOCSegmentation
        VOCDetection Cityscapes SBDataset WIDERFace Kitti Flickr8k Flickr30k SBU CelebA""",
    "videos": "Kinetics HMDB51 UCF101 MovingMNIST",
    "pairs of images, with a flow or a depth": """PhotoTour LFWPairs KittiFlow Sintel FlyingChairs
        FlyingThings3D HD1K Kitti2012Stereo Kitti2015Stereo CarlaStereo Middlebury2014Stereo
        CREStereo FallingThingsStereo SceneFlowStereo SintelStereo InStereo2k ETH3DStereo""",
    "a folder of files of yours: set data.source=folder": "ImageFolder DatasetFolder",
    "a database that torchvision reads through a library of its own": "LSUN LSUNClass",
    "no images: a base class or a function": "VisionDataset wrap_dataset_for_transforms_v2",
}
REFUSED = {name: what for what, names in _REFUSED.items() for name in names.split()}
# The argument that chooses a split, where it is not split="train" or train=True; and the values for
# training and testing.
SPLITS = {
    "ImageNet": ("split", "train", "val"),
    "Places365": ("split", "train-standard", "val"),
    "Imagenette": ("split", "train", "val"),
    "Country211": ("split", "train", "test"),
    "FGVCAircraft": ("split", "trainval", "test"),
    "OxfordIIITPet": ("split", "trainval", "test"),
    "INaturalist": ("version", "2021_train", "2021_valid"),
    "CLEVRClassification": ("split", "train", "val"),
    "EMNIST": ("train", True, False),
}
MORE = {"EMNIST": {"split": "balanced"}}  # arguments that a set must have


class Torchvision:
    """A data set of torchvision that yields (image, class); downloaded at the first use.

    Args:
        root: folder of its files; None: the default folder for downloads.
        split: "train", "test", or another split that the data set has.
    Attributes:
        undivided: the data set has no splits of its own.
    """

    def __init__(self, name: str, root: str | None, split: str, labels: bool = True) -> None:
        cls = _find(name)
        folder = root or str(downloads())
        known = inspect.signature(cls).parameters
        choice = _choice(name, known, split)
        self.undivided = not choice
        arguments = {**MORE.get(name, {}), **choice}
        if "download" in known or name in MORE:
            arguments["download"] = True
        try:
            self._data = cls(folder, **arguments) if "root" in known else cls(**arguments)
        except Exception as error:  # downloads raise too many kinds of exceptions to list
            raise UserError(
                f"data.source=torchvision:{name}, data.path={folder}: {first_line(error)}. Without "
                f"a network, copy the files into that folder or use another source"
            ) from None
        self._name, self._split = name, split
        self.classes = self.labels = None
        if labels:
            self._label(f"data.source=torchvision:{name}")

    def _label(self, where: str) -> None:
        targets = _targets(self._data)
        names = getattr(self._data, "classes", None)
        if targets.dtype.kind in "iu" and targets.ndim == 1 and targets.min() < 0:
            return  # -1: no label, as in parts of STL-10
        if (
            names
            and targets.dtype.kind in "iu"
            and targets.ndim == 1
            and targets.max() < len(names)
        ):
            self.classes = [name if isinstance(name, str) else str(name[0]) for name in names]
            self.labels = targets.astype(np.int64)
        else:
            self.classes, self.labels = as_classes(targets, len(self), where)

    def __len__(self) -> int:
        return len(self._data)

    def read(self, i: int) -> np.ndarray:
        return picture(self._data[i][0])

    def name(self, i: int) -> str:
        return f"torchvision:{self._name} {self._split} {i}"

    def name_blocks(self) -> Iterator[NameBlock]:
        return numbered(f"torchvision:{self._name} {self._split}", len(self))


def _find(name: str) -> type:
    """The class of a data set. Raises: UserError if there is none, or if it has no classes."""
    import torchvision.datasets as datasets

    if name in REFUSED:
        raise UserError(
            f"data.source=torchvision:{name}: its samples are not images with a class each, but "
            f"{REFUSED[name]}"
        )
    cls = getattr(datasets, name, None)
    if not isinstance(cls, type):
        hint = near(name, [n for n in datasets.__all__ if n not in REFUSED])
        raise UserError(f"data.source=torchvision:{name}: no such data set.{hint}")
    return cls


def _choice(name: str, known: Any, split: str) -> dict[str, Any]:
    """The argument that chooses the split; {} if the data set has no splits."""
    usual = split in ("train", "test")
    if name in SPLITS:
        key, train, test = SPLITS[name]
        return {key: {"train": train, "test": test}.get(split, split)}
    if "train" in known and usual:
        return {"train": split == "train"}
    if "split" in known:
        return {"split": split}
    if usual:
        return {}
    raise UserError(
        f"data.source=torchvision:{name}:{split}: {name} has "
        f"{'a train and a test split only' if 'train' in known else 'no splits of its own'}"
    )


def _targets(data: Any) -> np.ndarray:
    """The class of every image, from the attribute that holds them all if there is one."""
    for key in ("targets", "labels", "_labels", "y"):
        found = getattr(data, key, None)
        if found is not None and len(found) == len(data):
            return np.asarray(found)
    for key in ("_samples", "samples", "imgs"):  # (file, class) of each
        found = getattr(data, key, None)
        if found is not None and len(found) == len(data) and len(found[0]) == 2:
            return np.asarray([label for _, label in found])
    return np.asarray([data[i][1] for i in range(len(data))])
