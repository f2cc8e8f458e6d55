"""Sources that are arrays in memory: scikit-learn's digits, NumPy files."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from tacit.data.source import TEST_NAMES, TRAIN_NAMES
from tacit.errors import UserError


class Digits:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels; the last 360 are the test split."""

    TEST = 360

    def __init__(self, split: str, labels: bool = True) -> None:
        self.classes = [str(n) for n in range(10)] if labels else None
        pixels, target = _digits()
        rows = slice(-self.TEST, None) if split == "test" else slice(0, -self.TEST)
        gray = np.rint(pixels[rows] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        self._images = np.repeat(gray[..., None], 3, axis=3)
        self.labels = target[rows].astype(np.int64) if labels else None
        self._split = split

    def __len__(self) -> int:
        return len(self._images)

    def read(self, i: int) -> np.ndarray:
        return self._images[i]

    def name(self, i: int) -> str:
        return f"digits {self._split} {i}"


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 64) values from 0 to 16 and (1797,) labels, from the table that scikit-learn brings;
    to import it for that would take two seconds."""
    (folder,) = find_spec("sklearn").submodule_search_locations
    table = Path(folder, "datasets", "data", "digits.csv.gz")
    if table.is_file():
        values = np.loadtxt(table, delimiter=",")
        return values[:, :-1], values[:, -1]
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


class Arrays:
    """Images in a .npy file, or in an .npz with optional labels (keys such as images, labels)."""

    IMAGES, LABELS = ("images", "image", "x", "data"), ("labels", "label", "y", "targets")

    def __init__(self, path: Path, split: str, labels: bool = True) -> None:
        images, target, self._key = self._pick(_load_arrays(path), split, path)
        if images.ndim == 3:
            images = np.repeat(images[..., None], 3, axis=3)
        if images.ndim == 4 and images.shape[1] == 3 and images.shape[3] != 3:
            images = images.transpose(0, 2, 3, 1)
        if images.ndim == 4 and images.shape[3] == 1:
            images = np.repeat(images, 3, axis=3)
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise UserError(
                f"data.path={path}: images must be uint8 (N, H, W[, 3]) or (N, 3, H, W), "
                f"found {images.dtype} {images.shape}"
            )
        if target is not None and target.shape != (len(images),):
            raise UserError(
                f"data.path={path}: {len(images)} images, but labels of shape {target.shape}"
            )
        self._images, self._path = images, path
        self.labels = target.astype(np.int64) if labels and target is not None else None
        self.classes = None
        if self.labels is not None:
            self.classes = [str(n) for n in range(int(self.labels.max()) + 1)]

    def _pick(
        self, loaded: Any, split: str, path: Path
    ) -> tuple[np.ndarray, np.ndarray | None, str]:
        """Images, labels or None, and what the images are called."""
        if isinstance(loaded, np.ndarray):
            return loaded, None, "image"
        prefixes = [f"{n}_" for n in (TRAIN_NAMES if split == "train" else TEST_NAMES)] + [""]
        for prefix in prefixes:
            image = next((prefix + n for n in self.IMAGES if prefix + n in loaded.files), None)
            if image:
                label = next((prefix + n for n in self.LABELS if prefix + n in loaded.files), None)
                return loaded[image], loaded[label] if label else None, image
        raise UserError(
            f"data.path={path}: no array named {', '.join(self.IMAGES)} among {loaded.files}"
        )

    @staticmethod
    def splits(path: Path) -> bool:
        """Whether one .npz holds both splits (train_images and test_images, train_x and test_x)."""
        if path.suffix != ".npz":
            return False
        files = _load_arrays(path).files
        return any(f"{test}_{name}" in files for test in TEST_NAMES for name in Arrays.IMAGES)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, i: int) -> np.ndarray:
        return self._images[i]

    def name(self, i: int) -> str:
        return f"{self._path} {self._key} {i}"


def _load_arrays(path: Path) -> Any:
    """The array of a .npy or the open .npz; pickled objects, which could run code, are refused."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile):
        raise UserError(f"data.path={path}: not readable as NumPy arrays of numbers") from None
