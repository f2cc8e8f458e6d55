"""Sources that are arrays in memory: scikit-learn's digits and NumPy files."""

import functools
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from selfsight.data.config import DataConfig
from selfsight.data.labels import as_classes
from selfsight.data.names import NameBlock, numbered
from selfsight.data.source import TEST_NAMES, TRAIN_NAMES, WrongChannels, content_hash
from selfsight.data.sources.files import Files
from selfsight.errors import UserError

LOOKED_AT = 32  # .npy files of a folder, to find out whether they are images


class _Pixels:
    """Images (N, H, W, C) in memory, uint8 or of more bits.

    Args:
        target: labels as `as_classes` takes them, or None.
        where: what an error message begins with.
        what: the name of an image without its index.
    """

    def __init__(
        self, images: np.ndarray, target: np.ndarray | None, where: str, what: str
    ) -> None:
        self._images, self._what = images, what
        self.classes = self.labels = None
        if target is not None:
            self.classes, self.labels = as_classes(target, len(images), where)

    @property
    def hashes(self) -> np.ndarray:
        """(N, 16) uint8, the content hash of each image."""
        found = b"".join(map(content_hash, self._images))
        return np.frombuffer(found, np.uint8).reshape(-1, 16)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, i: int) -> np.ndarray:
        return self._images[i]

    def name(self, i: int) -> str:
        return f"{self._what} {i}"

    def name_blocks(self) -> Iterator[NameBlock]:
        return numbered(self._what, len(self))


class Digits(_Pixels):
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels; the last 360 are the test split."""

    TEST = 360

    def __init__(self, split: str, labels: bool = True) -> None:
        pixels, target = _digits()
        rows = slice(-self.TEST, None) if split == "test" else slice(0, -self.TEST)
        gray = np.rint(pixels[rows] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        target = target[rows] if labels else None
        super().__init__(gray.repeat(3, axis=3), target, "digits", f"digits {split}")


@functools.cache  # an evaluation opens two splits, a grid's cell opens them again and again
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 64) values from 0 to 16 and (1797,) labels.

    Read from scikit-learn's file, since importing scikit-learn takes two seconds.
    """
    (folder,) = find_spec("sklearn").submodule_search_locations
    table = Path(folder, "datasets", "data", "digits.csv.gz")
    if table.is_file():
        values = np.loadtxt(table, delimiter=",")
        return values[:, :-1], values[:, -1]
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


class Arrays(_Pixels):
    """Images in a .npy file, or images and optional labels in an .npz (keys IMAGES and LABELS).

    They are (N, H, W), (N, H, W, C), or (N, C, H, W) where the second axis alone can be the
    channels; of whole numbers, or with data.range of floating-point numbers.
    """

    IMAGES, LABELS = ("images", "image", "x", "data"), ("labels", "label", "y", "targets", "target")

    def __init__(
        self,
        path: Path,
        split: str,
        labels: bool = True,
        keys: DataConfig = DataConfig(),  # noqa: B008 (frozen)
    ) -> None:
        """
        Args:
            keys: data.channels and data.range are read.
        """
        n = keys.channels
        with _reading(path):
            images, target, key = self._pick(np.load(path, allow_pickle=False), split, path)
        if images.ndim == 3 and (3 in images.shape[::2] or not images.size):
            raise UserError(
                f"data.path={path}: one image of shape {images.shape}, or several gray ones? Save "
                f"one as {(1, *images.shape)}, gray ones as {(*images.shape, 1)}"
            )
        images = images[..., None] if images.ndim == 3 else images
        known = (1, 3) if n in (1, 3) else (n,)
        if images.ndim == 4 and images.shape[1] in known and images.shape[3] not in known:
            images = images.transpose(0, 2, 3, 1)
        if images.ndim == 4 and images.shape[3] == 1 and n == 3 and images.dtype == np.uint8:
            images = np.repeat(images, 3, axis=3)
        if images.ndim != 4 or not images.size or images.dtype.kind not in "iuf":
            raise UserError(
                f"data.path={path}: images must be numbers of shape (N, H, W[, channels]) or "
                f"(N, channels, H, W), found {images.dtype} {images.shape}"
            )
        if images.shape[3] not in known:
            raise WrongChannels(
                f"data.path={path}: images of shape {images.shape} have {images.shape[3]} channels "
                f"or {images.shape[1]}, and data.channels={n}; set data.channels to theirs",
                *sorted((images.shape[3], images.shape[1])),  # bands are fewer than pixels
            )
        if images.dtype.kind == "f" and keys.range is None:
            raise UserError(
                f"data.path={path}: images of {images.dtype}; give the range of their values: "
                f"data.range=[0, 1], or data.range=auto"
            )
        super().__init__(images, target if labels else None, f"data.path={path}", f"{path} {key}")
        self._path = path

    def files(self) -> list[Path]:
        return [self._path]

    def _pick(
        self, loaded: Any, split: str, path: Path
    ) -> tuple[np.ndarray, np.ndarray | None, str]:
        """Images, labels or None, and the name of the array of images."""
        if isinstance(loaded, np.ndarray):
            return loaded, None, "image"
        forms = _forms(TRAIN_NAMES if split == "train" else TEST_NAMES)
        for form in (*forms, "{}"):
            image, label = (
                next((form.format(n) for n in names if form.format(n) in loaded.files), None)
                for names in (self.IMAGES, self.LABELS)
            )
            if image:
                return loaded[image], loaded[label] if label else None, image
        raise UserError(
            f"data.path={path}: no array of images among {loaded.files}; its name must be one of "
            f"{', '.join(self.IMAGES)}"
        )

    @staticmethod
    def splits(path: Path) -> bool:
        """Whether one .npz holds both splits (train_images and test_images, train_x and test_x)."""
        if path.suffix != ".npz":
            return False
        with _reading(path):
            files = np.load(path, allow_pickle=False).files
        return any(
            form.format(name) in files for form in _forms(TEST_NAMES) for name in Arrays.IMAGES
        )


def are_images(files: list[Path]) -> bool:
    """Whether .npy files are an image each, as far as their shapes say; some are looked at."""
    if not all(file.suffix.lower() == ".npy" for file in files):
        return False
    places = np.unique(np.linspace(0, len(files) - 1, LOOKED_AT).round().astype(int))
    for file in (files[place] for place in places):
        try:
            if np.load(file, mmap_mode="r", allow_pickle=False).ndim not in (2, 3):
                return False
        except (OSError, ValueError, EOFError):  # damaged; it is noted where it is used
            continue
    return True


class NpyFiles(Files):
    """Images that are an .npy file each; the folders that lie beside each other are classes."""

    def __init__(self, files: list[Path], labels: bool = True) -> None:
        self._paths = [os.fsencode(file) for file in sorted(files)]
        root = os.path.commonpath([file.parent for file in files])
        inside = [os.path.relpath(os.fsdecode(path), root) for path in self._paths]
        folders = [path.partition(os.sep)[0] if os.sep in path else None for path in inside]
        self.classes = self.labels = None
        if labels and None not in folders:
            self.classes = sorted(set(folders))
            self.labels = np.array([self.classes.index(folder) for folder in folders], np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def _path(self, i: int) -> bytes:
        return self._paths[i]


def _forms(words: tuple[str, ...]) -> list[str]:
    """How an array's name says its split: train_images, x_train."""
    return [form for word in words for form in (f"{word}_{{}}", f"{{}}_{word}")]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors into UserError. Pickled objects are refused too, since they could run code."""
    try:
        yield
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error):
        raise UserError(f"data.path={path}: not readable as NumPy arrays of numbers") from None
