"""Which part of a path is for training and which for testing, by the usual names of folders and
files."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from selfsight.data.source import TEST_NAMES, TRAIN_NAMES
from selfsight.data.sources.arrays import Arrays
from selfsight.data.sources.kinds import (
    ENDINGS,
    MARKS,
    files_in,
    folders_in,
    has_images,
    holds_images,
    kind_of,
    recognise,
)
from selfsight.errors import UserError

UNLABELED = ("unlabeled", "unlabelled")
PICTURES = ("image", "images", "imgs", "img", "jpegimages", "photos", "pictures")
# Folders beside those of PICTURES, whose files describe the pictures.
ANNOTATIONS = ("label", "labels", "annotation", "annotations", "annots", "mask", "masks", "gt")
ANNOTATIONS += ("groundtruth", "segmentation", "segmentationclass", "segmentationobject", "depth")
ANNOTATIONS += ("imagesets", "bbox", "bboxes", "trimaps", "labelstxt", "panoptic", "instances")
# Words that may stand beside the name of a split: train_images, test-set, val2017, train-64x64.
NEUTRAL = ("set", "sets", "split", "data", "dataset", "full", "small", "cropped", "crops", "of")
NEUTRAL += (*PICTURES, "px", "resized", "part", "shard", "shards", "x", "a", "b", "bounding", "box")
DEPTH = 4  # wrapper folders that are opened, one inside the other

Where = Path | list[Path] | list[str] | Any  # what `sources.open` opens


class Found(NamedTuple):
    """The parts of a path.

    Attributes:
        train: what to open for training.
        tests: what could be the test split, the preferred one first.
        notes: what was decided that could be meant otherwise, a line each.
    """

    kind: str
    train: Where
    tests: list[Where]
    notes: list[str] = []  # noqa: RUF012 (never changed)


def find_splits(key: str, path: Path, kind: str) -> Found:
    """The kind and the splits of an existing path.

    Args:
        key: of the path, for messages: path or test_path.
        kind: "auto" to find it out.
    """
    notes: list[str] = []
    where = f"data.{key}={path}"
    if kind == "auto":
        kind, notes = recognise(path)
    if kind == "folder":
        _need_folder(path, kind)
        train, tests, more = _image_folders(path, where)
        return Found(kind, train, tests, notes + more)
    if kind in MARKS:
        _need_folder(path, kind)
        if (path / MARKS[kind]).is_file():
            return Found(kind, path, [], notes)
        named = _by_word(folders_in(path))
        trains = named["train"]
        tests = named["test"] if trains else []
        return Found(kind, trains[0] if trains else path, tests, notes)
    if path.is_file():
        both = kind == "arrays" and Arrays.splits(path)
        return Found(kind, [path], [[path]] if both else [], notes)
    files = [Path(file) for file in files_in(path) if kind_of(file) == kind]
    if not files:
        endings = ", ".join(sorted(ENDINGS[kind]))
        raise UserError(f"{where}: contains no files that end in {endings}")
    train, tests, more = by_name(sorted(files), path, where)
    return Found(kind, train, tests, notes + more)


def _need_folder(path: Path, kind: str) -> None:
    if not path.is_dir():
        raise UserError(f"data.path={path}: is not a folder, but data.source={kind} needs one")


# Names of splits ----------------------------------------------------------------------------------


def split_of(name: str, anywhere: bool = False) -> str | None:
    """The split that a name says: "train", a name of TEST_NAMES, or "unlabeled"; else None.

    Beside the word may stand numbers and NEUTRAL words: train, train2017, val_images, test-set. So
    train_station is no split.
    Args:
        anywhere: other words may stand before it, as in the names of shards: imagenet-train-0001.
    """
    tokens = re.findall(r"[^\W\d_]+|\d+", name.lower())
    for place, token in enumerate(tokens):
        word = _WORDS.get(token)
        if word is None:
            continue
        beside = tokens[place + 1 :] if anywhere else tokens[:place] + tokens[place + 1 :]
        if all(t.isdigit() or t in NEUTRAL or _is_hash(t) for t in beside):
            return word
    return None


_WORDS = dict.fromkeys((*TRAIN_NAMES, "trn", "traina", "trainb"), "train")
_WORDS |= {name: name for name in TEST_NAMES} | {"testa": "test", "testb": "test"}
_WORDS |= dict.fromkeys(UNLABELED, "unlabeled")
_WORDS |= {f"{word}{end}": split for word, split in _WORDS.items() for end in ("set", "images")}


def _is_hash(token: str) -> bool:
    """A part of a hash, as in train-00000-of-00001-a09b74b3ef9c.parquet."""
    return re.fullmatch(r"[0-9a-f]+", token) is not None


def _by_word(places: Iterable[Any], word: Callable[[Any], str | None] | None = None) -> dict:
    """{"train": [...], "test": [...], "unlabeled": [...], None: [...]}, each in order of its name;
    tests in the order of TEST_NAMES."""
    word = word or (lambda place: split_of(place.name))
    found: dict[str | None, list[Any]] = {"train": [], "test": [], "unlabeled": [], None: []}
    ranked = []
    for place in sorted(places):
        said = word(place)
        if said in TEST_NAMES:
            ranked.append((TEST_NAMES.index(said), place))
        else:
            found[said].append(place)
    found["test"] = [place for _, place in sorted(ranked, key=lambda pair: pair[0])]
    return found


def by_name(files: list[Any], root: Path | str, where: str) -> tuple[list, list[list], list[str]]:
    """The files for training, groups of files for testing, and notes; by the name of a file or of a
    folder between root and file."""

    def said(file: Any) -> str | None:
        parts = os.path.relpath(file, root).split(os.sep)
        parts[-1] = re.sub(r"\.\w+(\?.*)?$", "", parts[-1])  # without ending, and a URL's query
        names = (split_of(part, anywhere=True) for part in reversed(parts))
        return next((name for name in names if name), None)

    words = {file: said(file) for file in files}
    train = [f for f in files if words[f] == "train"]
    tests = [t for n in TEST_NAMES if (t := [f for f in files if words[f] == n])]
    others = [f for f in files if words[f] not in ("train", *TEST_NAMES)]
    if not train or not tests:  # without test files, one called `train` may be one of several
        return train + others if not train else sorted(train + others), tests, []
    notes = []
    if others:
        notes = [f"{where}: {len(others)} files whose names say no split are left out: {others[0]}"]
    return train, tests, notes


# Folders of images --------------------------------------------------------------------------------


def _image_folders(path: Path, where: str) -> tuple[list[Path], list[list[Path]], list[str]]:
    """The folders for training, groups of folders for testing, and notes.

    Wrapper folders are opened, and so is a folder `images` beside `labels` or `masks`. A folder
    called `train` is a split if there is a test split beside it, or nothing else with images;
    beside other folders of images it is a class.
    """
    notes: list[str] = []
    root = path
    for _ in range(DEPTH):
        inside = _with_images(root)
        found = _splits_in(root, inside, where, notes)
        if found:
            return *found, notes
        pictures = _pictures_in(root, inside, where, notes) or _wrapped(root, inside, where)
        if pictures is None:
            _refuse_inner_splits(inside, where)
            break
        root = pictures
    return [root], [], notes


def _with_images(root: Path) -> list[Path]:
    """The folders in it that hold images, at any depth."""
    return [f for f in folders_in(root) if f.name[0] != "." and holds_images(f)]


def _refuse_inner_splits(classes: list[Path], where: str) -> None:
    """Raises: UserError if a folder that would be a class holds splits: their images would mix."""
    for _ in range(DEPTH):
        if len(classes) != 1 or has_images(classes[0]):
            break
        classes = _with_images(classes[0])
    for folder in sorted(classes):
        if has_images(folder):
            continue
        named = _by_word(_with_images(folder))
        if named["train"] and named["test"]:
            train, test = named["train"][0].name, named["test"][0].name
            raise UserError(
                f"{where}: '{folder.name}' holds splits of its own, '{train}' and '{test}', which "
                f"would be mixed; name all folders for training with data.path=[...] and those for "
                f"testing with data.test_path=[...], or list images and labels in two files"
            )


def _wrapped(root: Path, inside: list[Path], where: str) -> Path | None:
    """The folder with splits or pictures that lies inside folders of one folder each, if there is
    one."""
    for _ in range(DEPTH):
        if len(inside) != 1 or has_images(root):
            return None
        root = inside[0]
        inside = _with_images(root)
        if _splits_in(root, inside, where, []) or _pictures_in(root, inside, where, []):
            return root
    return None


def _splits_in(
    root: Path, inside: list[Path], where: str, notes: list[str]
) -> tuple[list[Path], list[list[Path]]] | None:
    """The splits among these folders; None if they are classes, or no splits."""
    named = _by_word(inside)
    train, tests, others = named["train"], named["test"], named[None]
    left = named["unlabeled"] + others if train else others
    train = train or (named["unlabeled"] if tests else [])
    if not train:
        if tests and not others and where.startswith("data.test_path"):
            return [_content(tests[0], where, notes)], []
        if tests and not others and not has_images(root):
            names = ", ".join(f.name for f in tests)
            raise UserError(
                f"{where}: holds only {names}, and no images for training; name those with "
                f"data.path and these with data.test_path"
            )
        return None
    if others and not tests and _are_alike(train + others):
        notes.append(
            f"{where}: '{train[0].name}' is taken as a class, like '{others[0].name}'; if it holds "
            f"the training images, set data.path={train[0]}"
        )
        return None
    left = [f"'{f.name}'" for f in left] + ["the images beside them"] * has_images(root)
    if left:
        notes.append(
            f"{where}: {', '.join(f.name for f in train)} is used for training, "
            f"{', '.join(f.name for f in tests) or 'a part of it'} for testing; left out: "
            f"{', '.join(left)}. data.path=[...] joins folders"
        )
    return (
        [_content(f, where, notes) for f in train],
        [[_content(f, where, notes)] for f in tests],
    )


def _are_alike(folders: list[Path]) -> bool:
    """Whether the folders hold their images at the same depth, as classes do."""
    return len({has_images(folder) for folder in folders}) == 1


def _content(folder: Path, where: str, notes: list[str]) -> Path:
    """The folder, or that of its pictures: train/images beside train/labels."""
    inside = _with_images(folder)
    return _pictures_in(folder, inside, where, notes) or folder


def _pictures_in(root: Path, inside: list[Path], where: str, notes: list[str]) -> Path | None:
    """The one folder of pictures, where all others describe the pictures; None if there is none."""
    pictures = [f for f in inside if f.name.lower() in PICTURES]
    others = [f for f in inside if f not in pictures]
    known = [re.sub(r"[^a-z]", "", f.name.lower()) in ANNOTATIONS for f in others]
    if len(pictures) != 1 or not all(known) or has_images(root):
        return None
    if others:
        names = ", ".join(f"'{f.name}'" for f in others)
        notes.append(f"{where}: the images are those of '{pictures[0].name}'; left out: {names}")
    return pictures[0]
