"""The source that the keys `data.*` describe."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from selfsight import own
from selfsight.config import Tree, near
from selfsight.data.config import PATHS, DataConfig, PathSpec, several
from selfsight.data.labels import draw_part, hold_out
from selfsight.data.levels import choose_range
from selfsight.data.pack.read import Pack
from selfsight.data.source import (
    ConcatSource,
    Decoding,
    Source,
    Subset,
    WrongChannels,
    decoding,
    levels,
    notes,
)
from selfsight.data.sources.arrays import Arrays, Digits, NpyFiles, are_images
from selfsight.data.sources.dataset import open_part
from selfsight.data.sources.folder import Folder
from selfsight.data.sources.huggingface import HuggingFace, hub_splits
from selfsight.data.sources.kinds import KINDS
from selfsight.data.sources.lists import ListFile
from selfsight.data.sources.parquet import Parquet
from selfsight.data.sources.shards import Shards, expand
from selfsight.data.sources.splits import Found, Where, by_name, find_splits
from selfsight.data.sources.torchvision_sets import Torchvision
from selfsight.errors import UserError

OF_THE_PACKAGE = ("auto", "digits", *KINDS, "huggingface", "torchvision")
SOURCES = ("auto", "digits", *KINDS, "huggingface:NAME", "torchvision:NAME")


def with_range(config: DataConfig, train: Source) -> DataConfig:
    """The same keys with the range that the training images have, for a test split and for the
    record."""
    found = decoding(train).range if levels(train) is None else None
    return config if found is None else config.model_copy(update={"range": found})


def relocated(data: Tree, move: Callable[[str], str]) -> Tree:
    """The keys `data.*` with other paths; patterns and addresses stay as they are."""

    def moved(path: Any) -> Any:
        if isinstance(path, (list, tuple)):
            return type(path)(map(moved, path))
        return path if path is None or is_pattern(path) else move(os.path.expanduser(path))

    return {key: moved(value) if key in PATHS else value for key, value in data.items()}


def open_source(config: DataConfig, split: str, cache: Path | None = None) -> Source | None:
    """The train or test split of all paths (see `_open_split`); None without a test split.

    Of the train split at most `limit` images and at most the share `fraction` are used.
    Args:
        cache: folder for saved indices of large folders and of shards.
    Raises: UserError for a source or path that does not exist or cannot be read.
    """
    places = [_locate("test_path", path, "auto") for path in several(config.test_path)]
    if places and split == "test":
        folders = _folders(config.test_image_dir or config.image_dir, len(places))
        found = [
            _open_test(place, config, cache, folder)
            if place.tests
            else _open(place.kind, place.train, "test", config, cache, folder)
            for place, folder in zip(places, folders, strict=True)
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
    if config.bands and not all(getattr(part, "bands", None) for part in found):
        raise UserError(
            "data.bands: names the files of a list's paths with {band} in them, and these images "
            "are not of such a list; leave it out"
        )
    source.patience = config.patience
    about = _set_decoding(source, config, split)
    if split == "test":
        return source
    source.notes = [*notes(source), *about]
    count = max(2, round(config.fraction * len(source)))
    count = min(count, config.limit or count)
    if count < len(source):
        source = Subset(source, draw_part(source.labels, len(source), count))
    source.notes = [*notes(source), *_about_classes(source)]
    return source


def _set_decoding(source: Source, config: DataConfig, split: str) -> list[str]:
    """How the files of a source become pixels; returns what a user should know about it."""
    how = Decoding(None, False, config.max_pixels, config.channels, config.bits)
    mapped = levels(source)
    if mapped is not None:
        chosen, about = mapped, []
    elif split == "train":
        chosen, about = choose_range(config.range, source, how)
    elif isinstance(config.range, str):
        raise UserError(f"data.range={config.range}: is measured on training images")
    else:
        chosen, about = config.range, []
    found = config.range is None and mapped is None and chosen is not None
    source.decoding = how._replace(range=chosen, is_found=found)
    return about


def _about_classes(source: Source) -> list[str]:
    """A line about classes that are hardly meant so."""
    if source.classes is None or len(source) < 2:
        return []
    if len(source.classes) == 1:
        return [
            f"The images have only one class, '{source.classes[0]}': it distinguishes "
            f"nothing; if the classes are the folders below it, set data.path to that folder"
        ]
    if len(source.classes) == len(source):
        return [f"Each of the {len(source):,} images has a class of its own; are these classes?"]
    return []


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

    Splits are found by the usual names (see `splits.find_splits`), or are arrays in one .npz.
    `test_path` gives the test split another path. If labelled images have no test split, a share of
    each class, `test_fraction`, is held out; every run draws the same.
    """
    kind, _, name = config.source.partition(":")
    if kind not in OF_THE_PACKAGE and (part := own.find("data", config.source)) is not None:
        source, divided = open_part(part, split, path, config)
        return source if divided else _part(source, config, split)
    if kind == "digits" or (kind == "auto" and path is None):
        return Digits(split, config.labels)
    if kind == "torchvision" and name:
        name, *named = name.split(":", 1)  # torchvision:STL10:unlabeled
        source = Torchvision(
            name, path, named[0] if named and split == "train" else split, config.labels
        )
        return _part(source, config, split) if source.undivided else source
    if kind == "huggingface" and name:
        train, test = hub_splits(name, path, config.labels)
        found = Found(kind, train, [] if test is None else [test])
    elif path is None:
        _check_kind(config.source)
        raise UserError(f"data.source={config.source} needs data.path=...")
    else:
        found = _locate("path", path, config.source)
    if split == "test" and found.tests:
        folder = several(config.test_image_dir)[0] if config.test_image_dir else image_dir
        return _open_test(found, config, cache, folder)
    source = _open(found.kind, found.train, "train", config, cache, image_dir)
    source.notes = [*notes(source), *found.notes]
    if found.tests or config.test_path is not None or source.classes is None:
        return source if split == "train" else None
    return _part(source, config, split)


def _part(source: Source, config: DataConfig, split: str) -> Source | None:
    """The train or the test part of labelled images that have no splits of their own: each class
    is divided in the same proportion, and has images in both parts if it has two."""
    if source.labels is None:
        return source if split == "train" else None
    held = hold_out(source.labels, config.test_fraction, 0)
    if not held.any():
        return source if split == "train" else None
    return Subset(source, np.flatnonzero(held == (split == "test")))


def _open_test(found: Found, config: DataConfig, cache: Path | None, folder: str | None) -> Source:
    """The first test split that has labels; without any, the first."""
    opened = []
    for where in found.tests:
        opened.append(_open(found.kind, where, "test", config, cache, folder))
        if opened[-1].classes is not None or not config.labels:
            return opened[-1]
    return opened[0]


def _locate(key: str, text: str, kind: str) -> Found:
    """The kind of a path, what to open for training, and what for testing."""
    _check_kind(kind)
    if is_pattern(text):
        if kind not in ("auto", "webdataset"):
            raise UserError(
                f"data.{key}={text}: only tar shards can be given by URL or braces, not "
                f"data.source={kind}; set data.source=webdataset"
            )
        files = expand(text)
        root = os.path.commonpath(map(os.path.abspath, files))
        train, tests, left = by_name(files, root, f"data.{key}={text}")
        if not train or len(files) == 1:
            train, tests = files, []
        return Found("webdataset", train, tests, left)
    path = Path(text).expanduser()
    if not path.exists():
        raise UserError(f"data.{key}={text}: no such file or folder; give the path where it is now")
    return find_splits(key, path, kind)


def _check_kind(kind: str) -> None:
    """Raises: UserError for a source that nobody knows."""
    if kind not in ("auto", *KINDS):
        known = (*SOURCES, *own.registered("data"))
        raise UserError(
            f"data.source={kind}: no such source.{near(kind, known)} Known: {', '.join(known)}, or "
            f"your own as FILE.py:NAME"
        )


def is_pattern(text: str) -> bool:
    """Whether the text is a URL or a pattern with braces, and not the path of a file or folder."""
    return "://" in text or ("{" in text and not Path(text).expanduser().exists())


def is_local(config: DataConfig) -> bool:
    """Whether opening these images downloads nothing and runs no code: keys that are found in the
    file of an encoder or a table may be a stranger's."""
    paths = (path for key in PATHS for path in several(getattr(config, key)))
    kinds = ("auto", "digits", *KINDS)  # the hub's are called huggingface:NAME
    return config.source in kinds and not any("://" in path for path in paths)


def _open(
    kind: str, where: Where, split: str, config: DataConfig, cache: Path | None, folder: str | None
) -> Source:
    if kind == "folder":
        folders = [Folder(root, config.labels, cache) for root in where]
        return folders[0] if len(folders) == 1 else ConcatSource(folders)
    if kind == "pack":
        pack = Pack(where, config.labels)
        if pack.channels != config.channels and {pack.channels, config.channels} != {1, 3}:
            raise WrongChannels(
                f"data.path={where}: a pack of images with {pack.channels} channels, and "
                f"data.channels={config.channels}; set data.channels={pack.channels}",
                pack.channels,
            )
        return pack
    if kind == "huggingface":
        return HuggingFace(where, config.labels)
    if not where:
        raise UserError(
            f"data.source={kind}: all files are test files by their names, none is left to train "
            f"on; name the training files with data.path and the others with data.test_path"
        )
    if kind == "parquet":
        return Parquet(where, config.labels, config.channels)
    if kind == "webdataset":
        return Shards(where, config.labels, cache)
    if len(where) > 1 and are_images(where):
        return NpyFiles(where, config.labels)
    if len(where) > 1:
        listed = ", ".join(f.name for f in where[:4])
        raise UserError(
            f"data.path: several {kind} files for '{split}' ({listed}); set data.path to one file"
        )
    if kind == "list":
        start = Path(folder).expanduser() if folder else where[0].parent
        return ListFile(where[0], start, config.labels, config.bands)
    return Arrays(where[0], split, config.labels, config)
