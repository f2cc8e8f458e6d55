"""Sources that are arrays in memory: scikit-learn's digits and NumPy files."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from selfsight.data.labels import as_classes
from selfsight.data.source import TEST_NAMES, TRAIN_NAMES, content_hash
from selfsight.errors import UserError


class _Pixels:
    """Images (N, H, W, 3) uint8 in memory.

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


class Digits(_Pixels):
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels; the last 360 are the test split."""

    TEST = 360

    def __init__(self, split: str, labels: bool = True) -> None:
        pixels, target = _digits()
        rows = slice(-self.TEST, None) if split == "test" else slice(0, -self.TEST)
        gray = np.rint(pixels[rows] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        target = target[rows] if labels else None
        super().__init__(gray.repeat(3, axis=3), target, "digits", f"digits {split}")


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
    """Images in a .npy file, or images and optional labels in an .npz (keys IMAGES and LABELS)."""

    IMAGES, LABELS = ("images", "image", "x", "data"), ("labels", "label", "y", "targets", "target")

    def __init__(self, path: Path, split: str, labels: bool = True) -> None:
        with _reading(path):
            images, target, key = self._pick(np.load(path, allow_pickle=False), split, path)
        if images.ndim == 3 and (3 in images.shape[::2] or not images.size):
            raise UserError(
                f"data.path={path}: one image of shape {images.shape}, or several gray ones? Save "
                f"one as {(1, *images.shape)}, gray ones as {(*images.shape, 1)}"
            )
        if images.ndim == 3:
            images = np.repeat(images[..., None], 3, axis=3)
        if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
            images = images.transpose(0, 2, 3, 1)
        if images.ndim == 4 and images.shape[3] == 1:
            images = np.repeat(images, 3, axis=3)
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not images.size:
            raise UserError(
                f"data.path={path}: images must be uint8 (N, H, W[, 1 or 3]) or (N, 1 or 3, H, W), "
                f"found {images.dtype} {images.shape}"
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
