"""One class for each kind of source; `sources.open_source` chooses among them."""

import json
import os
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np

from tacit.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")  # the first that exists is taken


class Source(Protocol):
    """What every source offers."""

    classes: list[str] | None

    def __len__(self) -> int: ...

    def read(self, i: int) -> bytes | np.ndarray:
        """Encoded bytes, or uint8 pixels (H, W, 3)."""

    def label(self, i: int) -> int | None: ...

    def name(self, i: int) -> str:
        """What an error message calls the image."""


class Digits:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels; the last 360 are the test split."""

    TEST = 360

    def __init__(self, split: str, labels: bool = True) -> None:
        from sklearn.datasets import load_digits

        self.classes = [str(n) for n in range(10)] if labels else None

        digits = load_digits()
        rows = slice(-self.TEST, None) if split == "test" else slice(0, -self.TEST)
        gray = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)
        self._images = np.repeat(gray[..., None], 3, axis=3)
        self._labels = digits.target[rows]
        self._split = split

    def __len__(self) -> int:
        return len(self._images)

    def read(self, i: int) -> np.ndarray:
        return self._images[i]

    def label(self, i: int) -> int | None:
        return int(self._labels[i]) if self.classes else None

    def name(self, i: int) -> str:
        return f"digits {self._split} {i}"


class Folder:
    """Image files below a folder, sorted by path; labelled if each lies in a sub-folder of it."""

    def __init__(self, root: Path, labels: bool = True) -> None:
        self._root = root
        self._files = sorted(_image_files(root))
        if not self._files:
            known = " ".join(sorted(EXTENSIONS))
            raise UserError(f"data.path={root}: no images below it ({known})")
        tops = [file.partition(os.sep)[0] if os.sep in file else None for file in self._files]
        self.classes = sorted(set(tops)) if labels and all(tops) else None
        number = {name: n for n, name in enumerate(self.classes or [])}
        self._labels = [number[top] for top in tops] if self.classes else None

    def __len__(self) -> int:
        return len(self._files)

    def read(self, i: int) -> bytes:
        return (self._root / self._files[i]).read_bytes()

    def label(self, i: int) -> int | None:
        return self._labels[i] if self._labels else None

    def name(self, i: int) -> str:
        return str(self._root / self._files[i])


def _image_files(root: Path) -> list[str]:
    """Paths relative to the root; hidden files and folders are left out."""
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inside = os.path.relpath(folder, root)
        prefix = "" if inside == "." else inside + os.sep
        found += [
            prefix + f
            for f in files
            if os.path.splitext(f)[1].lower() in EXTENSIONS and not f.startswith(".")
        ]
    return found


class Parquet:
    """Hugging Face's layout: a column of structs {bytes, path}, and perhaps integer labels."""

    def __init__(self, files: list[Path], labels: bool = True) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:
            raise UserError(
                "data.source=parquet needs pyarrow: pip install 'tacit[parquet]'"
            ) from None
        try:
            table = pa.concat_tables([pq.read_table(file) for file in files])
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"data.path={files[0]}: not readable as parquet: {reason}") from None
        schema = table.schema
        image = next((f.name for f in schema if _is_image_struct(f.type)), None)
        if image is None:
            raise UserError(
                f"data.path={files[0]}: no image column (struct with 'bytes') among {schema.names}"
            )
        self._bytes = table.column(image).combine_chunks().field("bytes")
        self._where = f"{files[0].parent}/{files[0].name}" + (" ..." if len(files) > 1 else "")
        column = next((n for n in ("label", "labels", "fine_label") if n in schema.names), None)
        self._labels = table.column(column).to_numpy() if labels and column else None
        self.classes = _class_names(schema, column, self._labels)

    def __len__(self) -> int:
        return len(self._bytes)

    def read(self, i: int) -> bytes:
        value = self._bytes[i].as_py()
        if value is None:
            raise UserError(f"{self.name(i)}: the image's bytes are missing in the file")
        return value

    def label(self, i: int) -> int | None:
        return int(self._labels[i]) if self._labels is not None else None

    def name(self, i: int) -> str:
        return f"{self._where} row {i}"


def _is_image_struct(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_struct(kind) and any(kind.field(n).name == "bytes" for n in range(len(kind)))


def _class_names(schema: Any, column: str | None, labels: np.ndarray | None) -> list[str] | None:
    """From the schema's metadata, else the numbers themselves."""
    if labels is None:
        return None
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return list(features[column]["names"])
    except (KeyError, TypeError, ValueError):
        return [str(n) for n in range(int(labels.max()) + 1)]


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
        self._labels = target if labels else None
        self.classes = None
        if self._labels is not None:
            self.classes = [str(n) for n in range(int(self._labels.max()) + 1)]

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

    def label(self, i: int) -> int | None:
        return int(self._labels[i]) if self._labels is not None else None

    def name(self, i: int) -> str:
        return f"{self._path} {self._key} {i}"


def _load_arrays(path: Path) -> Any:
    """The array of a .npy or the open .npz; pickled objects, which could run code, are refused."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile):
        raise UserError(f"data.path={path}: not readable as NumPy arrays of numbers") from None


class Part:
    """Some images of a source: one side of a split made here."""

    def __init__(self, source: Source, rows: np.ndarray) -> None:
        self._source, self._rows = source, rows
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, i: int) -> bytes | np.ndarray:
        return self._source.read(int(self._rows[i]))

    def label(self, i: int) -> int | None:
        return self._source.label(int(self._rows[i]))

    def name(self, i: int) -> str:
        return self._source.name(int(self._rows[i]))
