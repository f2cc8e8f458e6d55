"""What a path holds: the kind of its source."""

import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from selfsight.data.pack.read import DESCRIPTION
from selfsight.data.sources.files import EXTENSIONS, ending_of, image_endings
from selfsight.data.sources.lists import ENDINGS as LIST_ENDINGS
from selfsight.data.sources.parquet import SAVED
from selfsight.errors import UserError

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

LOOKED_AT = 10_000  # files of a folder, to find out its kind
MANY = 10  # times as many files of one kind decide what a folder holds


def recognise(path: Path) -> tuple[str, list[str]]:
    """The kind of a source, by a file's ending or by the files in a folder; and what was left out.

    Raises: UserError if a folder holds files of several kinds and none is much more frequent.
    """
    if path.is_file():
        kind = kind_of(path.name)
        if kind in (None, "folder"):
            known = sorted(set().union(*ENDINGS.values()) - EXTENSIONS)
            raise UserError(
                f"data.path={path}: is not a folder, nor a file that ends in {', '.join(known)}"
            )
        return kind, []
    places = [path, *folders_in(path)]
    for kind, mark in MARKS.items():
        if any((place / mark).is_file() for place in places):
            return kind, []
    found, examples = Counter(), {}
    for file in islice(files_in(path), LOOKED_AT):
        kind = kind_of(file)
        if kind not in (None, "list"):  # a text file beside images is seldom a list of images
            found[kind] += 1
            examples.setdefault(kind, file)
    if not found:
        raise UserError(
            f"data.path={path}: contains no images, packs, parquet files, tar shards or NumPy "
            f"arrays"
        )
    (kind, most), *others = found.most_common()
    if any(most < MANY * count for _, count in others):
        several = " and ".join(
            f"{count} of {k} ({examples[k]})" for k, count in found.most_common()
        )
        choices = " or ".join(f"data.source={k}" for k, _ in found.most_common())
        raise UserError(f"data.path={path}: holds files of several kinds: {several}; set {choices}")
    return kind, [
        f"data.path={path}: {count} files of {other} are left out, such as {examples[other]}; "
        f"data.source={other} reads them"
        for other, count in others
    ]


def kind_of(name: str) -> str | None:
    ending = os.path.splitext(name)[1].lower()
    return next((kind for kind, endings in ENDINGS.items() if ending in endings), None)


def files_in(path: Path) -> Iterator[str]:
    """Paths of all files below a folder, hidden ones left out. A generator, since `recognise` does
    not look at all of many."""
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


def has_images(folder: Path) -> bool:
    """Whether images lie in the folder itself."""
    with os.scandir(folder) as entries:
        known = image_endings()
        return any(ending_of(os.fsencode(e.name)) in known and e.name[0] != "." for e in entries)


def holds_images(folder: Path, seen: frozenset[str] = frozenset()) -> bool:
    """Whether there are images at any depth; stops at the first that it meets."""
    real = os.path.realpath(folder)
    if real in seen:  # a link leads back
        return False
    if has_images(folder):
        return True
    below = (f for f in folders_in(folder) if f.name[0] != ".")
    return any(holds_images(f, seen | {real}) for f in below)
