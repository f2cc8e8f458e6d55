"""The keys `data.*`, and how the kind of a path and its splits are recognised."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from selfsight import randomness
from selfsight.batch import Normalization
from selfsight.config import Config, Tree, may_change, near
from selfsight.data.pack.read import DESCRIPTION, Pack
from selfsight.data.source import TEST_NAMES, TRAIN_NAMES, ConcatSource, Source, Subset
from selfsight.data.sources.arrays import Arrays, Digits
from selfsight.data.sources.folder import EXTENSIONS, Folder
from selfsight.data.sources.lists import ENDINGS as LIST_ENDINGS
from selfsight.data.sources.lists import ListFile
from selfsight.data.sources.parquet import SAVED, HuggingFace, Parquet, hub_splits
from selfsight.data.sources.shards import Shards, expand
from selfsight.data.sources.torchvision_sets import Torchvision
from selfsight.errors import UserError

# Keys of how images are read, not of which they are.
LOADING_KEYS = ("mean", "std", "in_memory", "workers", "max_bad", "patience")
# Kind of a source -> the endings of its files.
ENDINGS = {
    "parquet": {".parquet"},
    "arrays": {".npz", ".npy"},
    "webdataset": {".tar"},
    "list": LIST_ENDINGS,
    "folder": EXTENSIONS,
}
MARKS = {"pack": DESCRIPTION, "huggingface": SAVED}  # kind -> a file that every split's folder has
KINDS = (*ENDINGS, *MARKS)
SOURCES = ("auto", "digits", *KINDS, "huggingface:NAME", "torchvision:NAME")

PathSpec = str | tuple[str, ...]  # one path, or several


class DataConfig(Config):
    """Which images; see `open_source` for how a path is read."""

    # auto, digits, folder, list, pack, parquet, arrays, webdataset, or a name of a library's:
    # huggingface:NAME, torchvision:CIFAR10 and its like; a third part names the split to train on,
    # where it is not "train": torchvision:STL10:unlabeled
    source: str = "auto"
    # file or folder, or several of them; of torchvision and huggingface where they keep theirs
    path: PathSpec | None = None
    test_path: PathSpec | None = None  # of the test images, where they are not beside the others
    # of a list: where its paths start (default: the list's folder); of several lists, one each
    image_dir: PathSpec | None = None
    test_image_dir: PathSpec | None = None  # the same of test_path, where it is another
    labels: bool = True  # false: read no labels even where there are some
    limit: int | None = Field(None, ge=2)  # at most so many training images, drawn by coordinates
    fraction: float = Field(1.0, gt=0, le=1)  # or this share of them
    test_fraction: float = Field(0.2, gt=0, lt=1)  # held out of a labelled set without a test split
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of pixels in [0, 1], subtracted
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # divided by
    in_memory: bool | None = None  # decode once and keep (default: equal images up to 96 px)
    workers: int | None = may_change(None, ge=1)  # decoding threads (default: one for each core)
    # the share of images that may be broken; training replaces them, and stops if there are more
    max_bad: float = may_change(0.001, ge=0, le=1)
    patience: float = may_change(60.0, ge=0)  # seconds to wait while a disk or network fails

    @property
    def normalization(self) -> Normalization:
        return Normalization(self.mean, self.std)


def with_source(layer: Tree) -> Tree:
    """The keys `data.*` of a layer; if it sets a path, data.source becomes "auto" by default."""
    return {"source": "auto", **layer} if layer.get("path") is not None else layer


def open_source(config: DataConfig, split: str, cache: Path | None = None) -> Source | None:
    """The train or test split of all paths (see `_open_split`); None without a test split.

    Of the train split at most `limit` images and at most the share `fraction` are used.
    Args:
        cache: folder for saved indices of large folders and of shards.
    Raises: UserError for a source or path that does not exist or cannot be read.
    """
    tests = [_locate("test_path", path, "auto") for path in several(config.test_path)]
    if tests and split == "test":
        folders = _folders(config.test_image_dir or config.image_dir, len(tests))
        found = [
            _open(kind, test or train, "test", config, cache, folder)
            for (kind, train, test), folder in zip(tests, folders, strict=True)
        ]
    else:
        paths = several(config.path) or [None]
        opened = [
            _open_split(config, path, folder, split, cache)
            for path, folder in zip(paths, _folders(config.image_dir, len(paths)), strict=True)
        ]
        found = [source for source in opened if source is not None]
    if not found:
        return None
    source = found[0] if len(found) == 1 else ConcatSource(found)
    if split == "test":
        return source
    count = max(2, round(config.fraction * len(source)))
    count = min(count, config.limit or count)
    if count >= len(source):
        return source
    order = randomness.permutation(len(source), randomness.SUBSET)
    return Subset(source, np.sort(order[:count]))


def several(paths: PathSpec | None) -> list[str]:
    """A list of one path, of several, or of none."""
    return [paths] if isinstance(paths, str) else list(paths or [])


def _folders(paths: PathSpec | None, count: int) -> list[str | None]:
    """The image folder of each of `count` lists."""
    found = several(paths) or [None]
    if len(found) not in (1, count):
        raise UserError(
            f"data.image_dir: {len(found)} folders for {count} lists; give one each, or one for all"
        )
    return found if len(found) == count else found * count


def _open_split(
    config: DataConfig, path: str | None, image_dir: str | None, split: str, cache: Path | None
) -> Source | None:
    """The train or the test split of one path; None if it has no test split.

    Splits are found by the usual names: of sub-folders, of the beginnings of file names, or of
    arrays in one .npz. `test_path` gives the test split another path. If labelled images have no
    test split, a random share of them, `test_fraction`, is held out; every run draws the same.
    """
    kind, _, name = config.source.partition(":")
    if kind == "digits" or (kind == "auto" and path is None):
        return Digits(split, config.labels)
    if kind == "torchvision" and name:
        name, *own = name.split(":", 1)  # torchvision:STL10:unlabeled
        which = own[0] if own and split == "train" else split
        return Torchvision(name, path, which, config.labels)
    if kind == "huggingface" and name:
        train, test = hub_splits(name, path, config.labels)
    elif path is None:
        raise UserError(f"data.source={config.source} needs data.path=...")
    else:
        kind, train, test = _locate("path", path, config.source)
    if split == "test" and test is not None:
        folder = several(config.test_image_dir)[0] if config.test_image_dir else image_dir
        return _open(kind, test, "test", config, cache, folder)
    source = _open(kind, train, "train", config, cache, image_dir)
    if test is not None or config.test_path is not None or source.classes is None:
        return source if split == "train" else None
    order = randomness.permutation(len(source), randomness.SPLIT)
    cut = max(1, round(config.test_fraction * len(source)))
    return Subset(source, np.sort(order[:cut] if split == "test" else order[cut:]))


# A folder, files (shards may also be URLs), or an object that a library has opened.
Where = Path | list[Path] | list[str] | Any


def _locate(key: str, text: str, kind: str) -> tuple[str, Where, Where | None]:
    """The kind of a path, what to open for training, and what for testing (None: nothing)."""
    if kind not in ("auto", *KINDS):
        raise UserError(
            f"data.source={kind}: no such source.{near(kind, SOURCES)} Known: {', '.join(SOURCES)}"
        )
    if is_pattern(text):
        if kind not in ("auto", "webdataset"):
            raise UserError(
                f"data.{key}={text}: only tar shards can be given by URL or braces, not "
                f"data.source={kind}; set data.source=webdataset"
            )
        files = expand(text)
        train, test = _by_name(files, os.path.commonpath(map(os.path.abspath, files)))
        return "webdataset", train or files, test if train else None
    path = Path(text).expanduser()
    if not path.exists():
        raise UserError(f"data.{key}={text}: no such file or folder")
    kind = recognise(path) if kind == "auto" else kind
    return kind, *_find_splits(kind, path)


def is_pattern(text: str) -> bool:
    """Whether the text is a URL or a pattern with braces, and not the path of a file or folder."""
    return "://" in text or ("{" in text and not Path(text).expanduser().exists())


def recognise(path: Path) -> str:
    """The kind of a source: by a file's ending, or by the files in a folder."""
    if path.is_file():
        kind = _kind_of(path.name)
        if kind in (None, "folder"):
            known = sorted(set().union(*ENDINGS.values()) - EXTENSIONS)
            raise UserError(
                f"data.path={path}: is not a folder, nor a file that ends in {', '.join(known)}"
            )
        return kind
    places = [path, *folders_in(path)]
    for kind, mark in MARKS.items():
        if any((place / mark).is_file() for place in places):
            return kind
    for file in _files(path):
        kind = _kind_of(file)
        if kind not in (None, "list"):  # a text file beside images is seldom a list of images
            return kind
    raise UserError(
        f"data.path={path}: contains no images, packs, parquet files, tar shards or NumPy arrays"
    )


def _kind_of(name: str) -> str | None:
    ending = os.path.splitext(name)[1].lower()
    return next((kind for kind, endings in ENDINGS.items() if ending in endings), None)


def _files(path: Path) -> Iterator[str]:
    """Paths of all files below a folder, hidden ones left out. A generator, since `recognise` stops
    at the first file that it knows."""
    seen = set()
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link may lead back to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (os.path.join(folder, name) for name in sorted(files) if name[0] != ".")


def folders_in(path: Path) -> list[Path]:
    """The folders directly in a folder; fast also beside a million files."""
    with os.scandir(path) as entries:
        return [path / entry.name for entry in entries if entry.is_dir()]


def _find_splits(kind: str, path: Path) -> tuple[Where, Where | None]:
    """What to open for the train and for the test split; None if it has no test split."""
    if kind in ("folder", *MARKS):
        if not path.is_dir():
            raise UserError(f"data.path={path}: is not a folder, but data.source={kind} needs one")
        if kind in MARKS and (path / MARKS[kind]).is_file():
            return path, None
        names = {p.name.lower(): p for p in folders_in(path)}
        train = next((names[n] for n in TRAIN_NAMES if n in names), None)
        test = next((names[n] for n in TEST_NAMES if n in names), None)
        return (train, test) if train else (path, None)
    if path.is_file():
        return [path], [path] if kind == "arrays" and Arrays.splits(path) else None
    files = [Path(file) for file in _files(path) if _kind_of(file) == kind]
    if not files:
        endings = ", ".join(sorted(ENDINGS[kind]))
        raise UserError(f"data.path={path}: contains no files that end in {endings}")
    return _by_name(sorted(files), path)


def _by_name(files: list[Any], root: Path | str) -> tuple[list[Any], list[Any] | None]:
    """The files of the train and of the test split, by their names (see `_says`)."""
    train = [p for p in files if _says(p, root, TRAIN_NAMES)]
    test = next((t for n in TEST_NAMES if (t := [p for p in files if _says(p, root, (n,))])), None)
    return train or [p for p in files if not test or p not in test], test


def _says(file: Path | str, root: Path | str, names: tuple[str, ...]) -> bool:
    """Whether the name of the file, or of a folder between root and file, begins with a name."""
    parts = os.path.relpath(file, root).split(os.sep)
    return any(re.split(r"[-._]", part.lower())[0] in names for part in parts)


def _open(
    kind: str, where: Where, split: str, config: DataConfig, cache: Path | None, folder: str | None
) -> Source:
    if kind == "folder":
        return Folder(where, config.labels, cache)
    if kind == "pack":
        return Pack(where, config.labels)
    if kind == "huggingface":
        return HuggingFace(where, config.labels)
    if not where:
        raise UserError(
            f"data.source={kind}: all files are test files by their names, none is left to train "
            f"on; name the training files with data.path and the others with data.test_path"
        )
    if kind == "parquet":
        return Parquet(where, config.labels)
    if kind == "webdataset":
        return Shards(where, config.labels, cache)
    if len(where) > 1:
        listed = ", ".join(f.name for f in where[:4])
        raise UserError(
            f"data.path: several {kind} files for '{split}' ({listed}); set data.path to one file"
        )
    if kind == "list":
        start = Path(folder).expanduser() if folder else where[0].parent
        return ListFile(where[0], start, config.labels)
    return Arrays(where[0], split, config.labels)
