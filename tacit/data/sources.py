"""Which images: the keys `data.*`, and how a path and its splits are recognised."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tacit import randomness
from tacit.config import Config, Tree, near
from tacit.data.readers import (
    EXTENSIONS,
    TEST_NAMES,
    TRAIN_NAMES,
    Arrays,
    Digits,
    Folder,
    Parquet,
    Part,
    Source,
)
from tacit.data.torchvision_sets import Torchvision
from tacit.errors import UserError

# Keys of how images are read, not of which they are.
READING = ("mean", "std", "in_memory", "workers")
SOURCES = ("auto", "digits", "folder", "parquet", "arrays", "torchvision:NAME")


class DataConfig(Config):
    """Which images; see `open_source` for how a path is read."""

    # auto, digits, folder, parquet, arrays, or torchvision:CIFAR10 and its like; a third part names
    # the split to train on, where it is not "train": torchvision:STL10:unlabeled
    source: str = "auto"
    path: str | None = None  # file or folder; for torchvision the folder to download to
    labels: bool = True  # false: read no labels even where there are some
    limit: int | None = Field(None, ge=2)  # at most so many training images, drawn by coordinates
    test_fraction: float = Field(0.2, gt=0, lt=1)  # held out of a labelled set without a test split
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of pixels in [0, 1], subtracted
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # divided by
    in_memory: bool | None = (
        None  # decode once and keep (default: equally large images up to 96 px)
    )
    workers: int | None = Field(None, ge=1)  # decoding threads (default: one for each core)


def with_source(layer: Tree) -> Tree:
    """A layer of the keys `data.*` in which a new path means that its kind is recognised."""
    return {"source": "auto", **layer} if layer.get("path") is not None else layer


def open_source(config: DataConfig, split: str) -> Source | None:
    """The train or the test split, see `_open_split`; of the train split at most `limit` images."""
    source = _open_split(config, split)
    if split != "train" or config.limit is None or config.limit >= len(source):
        return source
    order = randomness.permutation(len(source), randomness.SUBSET)
    return Part(source, np.sort(order[: config.limit]))


def _open_split(config: DataConfig, split: str) -> Source | None:
    """The train or the test split; None if there is no test split to be had.

    A path's splits are found by the usual names: sub-folders, files that start with them, or arrays
    in one .npz. A labelled set without a test split is divided here, by coordinates,
    `test_fraction` for testing.
    Raises: UserError for a source or path that is not there or not readable.
    """
    if config.source == "digits" or (config.source == "auto" and config.path is None):
        return Digits(split, config.labels)
    if config.source.startswith("torchvision:"):
        _, name, *own = config.source.split(":", 2)  # torchvision:STL10:unlabeled
        if split == "train" and own:
            split = own[0]
        return Torchvision(name, config.path, split, config.labels)
    if config.path is None:
        raise UserError(f"data.source={config.source} needs data.path=...")
    path = Path(config.path).expanduser()
    if not path.exists():
        raise UserError(f"data.path={config.path}: no such file or folder")
    kind = recognise(path) if config.source == "auto" else config.source
    if kind not in ("folder", "parquet", "arrays"):
        raise UserError(
            f"data.source={kind}: no such source.{near(kind, SOURCES)} Known: {', '.join(SOURCES)}"
        )
    train, test = _find_splits(kind, path)
    if split == "test" and test is not None:
        return _open(kind, test, "test", config.labels)
    source = _open(kind, train, "train", config.labels)
    if test is not None or source.classes is None:
        return source if split == "train" else None
    order = randomness.permutation(len(source), randomness.SPLIT)
    cut = max(1, round(config.test_fraction * len(source)))
    return Part(source, np.sort(order[:cut] if split == "test" else order[cut:]))


def recognise(path: Path) -> str:
    """folder, parquet or arrays, from the path's ending or from what the folder holds."""
    endings = {".parquet": "parquet", ".npz": "arrays", ".npy": "arrays"}
    if path.is_file():
        kind = endings.get(path.suffix.lower())
        if kind is None:
            raise UserError(f"data.path={path}: is none of {', '.join(endings)}, nor a folder")
        return kind
    for file in sorted(path.rglob("*"))[:10_000]:
        kind = endings.get(file.suffix.lower())
        if kind:
            return kind
        if file.suffix.lower() in EXTENSIONS:
            return "folder"
    raise UserError(f"data.path={path}: holds no images, parquet files or NumPy arrays")


def _find_splits(kind: str, path: Path) -> tuple[Any, Any]:
    """What to open for the train and the test split; the second is None where there is none."""
    if kind == "folder":
        names = {p.name.lower(): p for p in path.iterdir() if p.is_dir()}
        train = next((names[n] for n in TRAIN_NAMES if n in names), None)
        test = next((names[n] for n in TEST_NAMES if n in names), None)
        return (train, test) if train else (path, None)
    if path.is_file():
        return path, path if kind == "arrays" and Arrays.splits(path) else None
    endings = {".parquet"} if kind == "parquet" else {".npz", ".npy"}
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in endings)
    train = [p for p in files if _says(p, path, TRAIN_NAMES)]
    test = next((t for n in TEST_NAMES if (t := [p for p in files if _says(p, path, (n,))])), None)
    return train or [p for p in files if p not in (test or [])], test


def _says(file: Path, root: Path, names: tuple[str, ...]) -> bool:
    """Whether the file or one of its folders below the root is named after a split."""
    parts = file.relative_to(root).parts
    return any(re.split(r"[-._]", part.lower())[0] in names for part in parts)


def _open(kind: str, where: Any, split: str, labels: bool) -> Source:
    if kind == "folder":
        return Folder(where, labels)
    files = where if isinstance(where, list) else [where]
    if not files:
        raise UserError(f"data.source={kind}: found test files, but none to train on")
    if kind == "parquet":
        return Parquet(files, labels)
    if len(files) > 1:
        listed = ", ".join(f.name for f in files[:4])
        raise UserError(f"data.path: several array files for '{split}' ({listed}); name one")
    return Arrays(files[0], split, labels)
