"""A folder of image files: a million are found in seconds, and their names take little memory."""

import errno
import hashlib
import os
import stat
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfsight.data.names import NameBlock, blocks_in
from selfsight.data.packed_strings import PackedStrings, load_index, save_index
from selfsight.data.source import GRANULARITY
from selfsight.data.sources.files import EXTENSIONS, Files, how_to_read, image_endings
from selfsight.errors import UserError

STRAY = 0.1  # of all images: as many may lie beside the folders of classes and be left out
THREADS = min(4, os.cpu_count() or 1)
CACHED = 10_000  # images: the index of fewer is not saved, scanning them is as fast
FORMAT = 4  # version of a saved index; raise it when its content or meaning changes
DOT = ord(".")


class Folder(Files):
    """Image files below a folder, sorted by folder and then by name, both by their bytes.

    Hidden files and folders are left out. Links to folders are followed, but each folder is used
    once: if several paths lead to it, the one with the fewest links counts.
    The name of the sub-folder of the root that an image lies in is its class. A few images beside
    these sub-folders are left out; if there are many, the images have no labels.

    Attributes:
        notes: what was left out, a line each.
    """

    def __init__(self, root: Path, labels: bool = True, cache: Path | None = None) -> None:
        """Args:
        cache: folder for the saved index of a large root, which is used again as long as no
            modification time of a folder below the root has changed.
        """
        self._root = os.fsencode(root)
        index = _index(root, cache)
        self.notes = _left_out(root, index)
        if not len(index.names):
            known = " ".join(sorted(EXTENSIONS)) + how_to_read(index.others)
            raise UserError(f"data.path={root}: contains no images ({known})")
        self.classes = self.labels = None
        if labels:
            index, notes = _without_strays(root, index)
            self.notes += notes
            self.classes, self.labels = _label(index)
        self._folders, self._ends, self._names = index.folders, index.ends, index.names

    def __len__(self) -> int:
        return len(self._names)

    def _path(self, i: int) -> bytes:
        folder = self._folders.raw(bisect_right(self._ends, i))
        return os.path.join(self._root, folder, self._names.raw(i))

    def name_blocks(self) -> Iterator[NameBlock]:
        for folder, rows in blocks_in(self._ends):
            prefix = os.path.join(self._root, self._folders.raw(folder), b"")
            yield prefix, self._names.part(rows.start, rows.stop)


class _Index(NamedTuple):
    """All folders and images below a root.

    Attributes:
        folders: F paths relative to the root, with and without images, sorted.
        states: (F, 2) int64, see `_state`.
        ends: (F,) int64, the index of each folder's last image + 1.
        names: file names of the N images.
        others, counts: endings of the other files, and (E,) int64, how many files have each.
    """

    folders: PackedStrings
    states: np.ndarray
    ends: np.ndarray
    names: PackedStrings
    others: PackedStrings
    counts: np.ndarray


def _left_out(root: Path, index: _Index) -> list[str]:
    """A line about the files that are no images; [] if there are none."""
    if not len(index.counts):
        return []
    found = sorted(zip(index.counts.tolist(), map(str, index.others), strict=True), reverse=True)
    words = [f"{count:,} {f'.{end}' if end else 'without ending'}" for count, end in found]
    listed, total = ", ".join(words) + how_to_read(index.others), int(index.counts.sum())
    return [f"data.path={root}: {total:,} files that are no images are left out: {listed}"]


def _without_strays(root: Path, index: _Index) -> tuple[_Index, list[str]]:
    """The index without images that lie beside the folders of classes, if they are few; a note."""
    count, total = int(index.ends[0]), len(index.names)
    if not count or count == total:
        return index, []
    names = ", ".join(index.names[i] for i in range(min(3, count)))
    what = f"data.path={root}: {count:,} images ({names}{', ...' if count > 3 else ''})"
    if count > STRAY * total:
        return index, [
            f"{what} lie beside the sub-folders, so the sub-folders are no classes and the images "
            f"have no labels; move them if they are"
        ]
    names = PackedStrings(index.names.blob, index.names.offsets[count:])
    ends = np.maximum(index.ends - count, 0)
    return index._replace(names=names, ends=ends), [
        f"{what} lie beside the folders of the classes and are left out; data.labels=false uses "
        f"them"
    ]


def _label(index: _Index) -> tuple[list[str] | None, np.ndarray | None]:
    """Classes and labels (N,) by the first folder of each path; None if an image has no folder."""
    counts = np.diff(index.ends, prepend=0)
    tops = [index.folders.raw(f).partition(os.sep.encode())[0] for f in range(len(index.folders))]
    used = sorted({top for top, count in zip(tops, counts, strict=True) if count})
    if b"" in used:
        return None, None
    number = {top: n for n, top in enumerate(used)}
    of_folder = np.array([number.get(top, -1) for top in tops], np.int64)
    return [os.fsdecode(top) for top in used], np.repeat(of_folder, counts)


# The cache ----------------------------------------------------------------------------------------


def _index(root: Path, cache: Path | None) -> _Index:
    """The saved index if nothing has changed since, else the result of a scan, which is saved."""
    start, began = os.fsencode(root), time.time_ns()
    with ThreadPoolExecutor(THREADS, "scan") as pool:
        if cache is None:
            return _scan(start, pool)
        what = b" ".join([b"%d" % FORMAT, *sorted(image_endings()), os.path.realpath(start)])
        key = hashlib.sha256(what).hexdigest()
        file = cache / f"folder-{key[:16]}.npz"
        index = load_index(file, _Index)
        if index is None or not _is_current(index, start, pool):
            index = _scan(start, pool)
            # A folder that changed just now may change again within the same modification time.
            if len(index.names) >= CACHED and index.states[:, 0].max() < began - GRANULARITY:
                save_index(file, index)
        return index


def _is_current(index: _Index, root: bytes, pool: ThreadPoolExecutor) -> bool:
    """Whether the state of every folder is the saved one."""
    paths = [os.path.join(root, index.folders.raw(f)) for f in range(len(index.folders))]
    try:
        states = _in_threads(pool, lambda path: _state(_status(path)), paths)
    except OSError:
        return False
    return np.array_equal(index.states, states)


# The scan -----------------------------------------------------------------------------------------


class _Listing(NamedTuple):
    """What one folder contains; paths are relative to the root.

    Attributes:
        status: None if the path does not exist or is not a folder.
        names: file names of its images, sorted.
        others: ending -> number of its other files.
        folders, links: paths of its folders, and of its links that may lead to folders.
    """

    path: bytes
    status: os.stat_result | None
    names: PackedStrings
    others: Counter[bytes]
    folders: list[bytes]
    links: list[bytes]


def _scan(root: bytes, pool: ThreadPoolExecutor) -> _Index:
    """List all folders, level by level: the result does not depend on the speed of threads.

    Raises: UserError if a folder cannot be read.
    """
    found: list[_Listing] = []
    seen, level, links = set(), [b""], []
    while level:
        listings = _in_threads(pool, partial(_list, root), sorted(level))
        level = []
        for listing in listings:
            if listing.status is not None:
                identity = (listing.status.st_dev, listing.status.st_ino)
                if identity in seen:
                    continue
                seen.add(identity)
            found.append(listing)
            level += listing.folders
            links += listing.links
        if not level:  # links last, so that a folder inside the root keeps its own path
            level, links = links, []
    found.sort(key=lambda listing: listing.path.split(os.sep.encode()))
    others = sum((listing.others for listing in found if listing.others), Counter())
    return _Index(
        PackedStrings.of(listing.path for listing in found),
        np.array([_state(listing.status) for listing in found], np.int64),
        np.array([len(listing.names) for listing in found], np.int64).cumsum(),
        PackedStrings.joined([listing.names for listing in found]),
        PackedStrings.of(sorted(others)),
        np.array([others[ending] for ending in sorted(others)], np.int64),
    )


def _list(root: bytes, path: bytes) -> _Listing:
    whole = os.path.join(root, path)
    files, folders, links = [], [], []
    try:
        # Before the listing: a change during it then makes the saved index outdated.
        status = _status(whole)
        for entry in [] if status is None else _entries(whole, files):
            if entry.name.startswith(b"."):
                continue
            if not entry.is_symlink():
                (folders if entry.is_dir() else files).append(entry.name)
                continue
            if not os.path.isdir(entry.path):
                files.append(entry.name)
            if not os.path.isfile(entry.path):
                # A link to nothing may lead to a folder later, when a disk is mounted.
                links.append(entry.name)
    except OSError as error:
        raise UserError(
            f"data.path={os.fsdecode(root)}: cannot read the folder '{os.fsdecode(whole)}': "
            f"{error.strerror}; give yourself permission to read it, or move it elsewhere"
        ) from None
    images, others = _sorted_out(files)
    below = [[os.path.join(path, name) for name in names] for names in (folders, links)]
    return _Listing(path, status, PackedStrings.of(sorted(images)), others, *below)


def _sorted_out(files: list[bytes]) -> tuple[list[bytes], Counter[bytes]]:
    """The images among file names, and the endings of all others but hidden ones."""
    images, others, known = [], [], image_endings()
    for name in files:
        _, dot, ending = name.rpartition(b".")
        if dot and ending.lower() in known and name[0] != DOT:
            images.append(name)
        elif name[0] != DOT:
            others.append(ending.lower() if dot else b"")
    return images, Counter(others)


def _entries(path: bytes, files: list[bytes]) -> list[os.DirEntry]:
    """All entries but plain files, whose names are appended to `files`.

    Called for a million entries, so it does as little as possible with each.
    """
    others = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                files.append(entry.name)
            else:
                others.append(entry)
    return others


def _status(path: bytes) -> os.stat_result | None:
    """The status of a folder; None if it does not exist. Raises: OSError if access is refused."""
    try:
        status = os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    return status if stat.S_ISDIR(status.st_mode) else None


def _state(status: os.stat_result | None) -> tuple[int, int]:
    """(modification time in ns, inode number) of a folder, each modulo 2^63 to fit int64.

    It changes if a file is added or removed, or if a link leads to another folder.
    """
    return (status.st_mtime_ns % 2**63, status.st_ino % 2**63) if status else (0, 0)


def _in_threads(
    pool: ThreadPoolExecutor, work: Callable[[bytes], Any], items: list[bytes]
) -> list[Any]:
    """[work(item) for item in items], computed by all threads."""
    size = len(items) // (4 * THREADS) + 1
    chunks = [items[i : i + size] for i in range(0, len(items), size)]
    return [r for results in pool.map(lambda c: [work(x) for x in c], chunks) for r in results]
