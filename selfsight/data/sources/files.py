"""Sources whose images are files: which files are images, and how one is read."""

import errno
import functools
import os
import stat
from collections.abc import Iterable, Iterator
from importlib.util import find_spec

# What Pillow reads, except containers of other things than pictures, and what needs a program or
# another system to be drawn (EPS, WMF). The most common first: of a sample in a shard with several
# images, the first is used.
_ENDINGS = """
jpg jpeg png webp bmp gif tif tiff ppm pgm pbm pnm jfif jpe jp2 j2k jpc jpf jpx j2c avif avifs apng
tga icb vda vst dib ico cur icns pcx dcx psd sgi rgb rgba bw ras dds qoi pfm fits fit xbm xpm im iim
msp gbr blp ftc ftu pcd pxr flc fli
"""
# What other libraries read. Folders and shards of other images may hold such files too, which were
# left out before these could be read: they are images where the library is installed.
OPTIONAL = {"heic": "pillow_heif", "heif": "pillow_heif", "dcm": "pydicom", "dicom": "pydicom"}
EXTRAS = {"pillow_heif": "heif", "pydicom": "dicom"}  # library -> the extra that installs it
ENDINGS = tuple(ending.encode() for ending in _ENDINGS.split())
KNOWN = frozenset((*ENDINGS, *map(str.encode, OPTIONAL), b"npy"))
EXTENSIONS = {f".{ending.decode()}" for ending in ENDINGS} | {f".{ending}" for ending in OPTIONAL}


def is_image(name: bytes) -> bool:
    """Whether a file's name ends as that of an image."""
    return ending_of(name) in KNOWN


def ending_of(name: bytes) -> bytes:
    """The ending of a file's name in small letters, without its dot; b"" if it has none."""
    _, dot, ending = name.rpartition(b".")
    return ending.lower() if dot else b""


@functools.cache
def image_endings() -> frozenset[bytes]:
    """The endings of the files of a folder that are images, given the libraries that are here."""
    there = (ending for ending, library in OPTIONAL.items() if find_spec(library))
    return frozenset((*ENDINGS, *map(str.encode, there)))


def how_to_read(endings: Iterable[str]) -> str:
    """What else reads files with these endings, for the end of a message; "" if nothing does."""
    words = []
    for ending in endings:
        if ending in OPTIONAL:  # without its library, or it would be an image's
            words.append(f"; .{ending} needs pip install 'selfsight[{EXTRAS[OPTIONAL[ending]]}]'")
        if ending == "npy":
            words.append("; data.source=arrays reads .npy files")
    return "".join(words)


def read_file(path: bytes) -> bytes:
    """The content of a regular file.

    Raises: OSError, also for other kinds of files: reading a pipe would wait for ever.
    """
    at_once = getattr(os, "O_NONBLOCK", 0)
    with open(path, "rb", 0, opener=lambda path, flags: os.open(path, flags | at_once)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read()


class Files:
    """A source whose images are files. Subclasses define `__len__` and `_path`, as bytes."""

    def read(self, i: int) -> bytes:
        return read_file(self._path(i))

    def name(self, i: int) -> str:
        return os.fsdecode(self._path(i))

    def files(self) -> Iterator[bytes]:
        return map(self._path, range(len(self)))
