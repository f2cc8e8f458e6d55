"""Sources whose images are files: which files are images, and how one is read."""

import errno
import os
import stat
from collections.abc import Iterator

# What Pillow reads, except containers of other things than pictures, and what needs a program or
# another system to be drawn (EPS, WMF). The most common first: of a sample in a shard with several
# images, the first is used.
_ENDINGS = """
jpg jpeg png webp bmp gif tif tiff ppm pgm pbm pnm jfif jpe jp2 j2k jpc jpf jpx j2c avif avifs apng
tga icb vda vst dib ico cur icns pcx dcx psd sgi rgb rgba bw ras dds qoi pfm fits fit xbm xpm im iim
msp gbr blp ftc ftu pcd pxr flc fli
"""
ENDINGS = tuple(ending.encode() for ending in _ENDINGS.split())
KNOWN = frozenset(ENDINGS)
EXTENSIONS = {f".{ending.decode()}" for ending in ENDINGS}


def is_image(name: bytes) -> bool:
    """Whether a file's name ends as that of an image."""
    _, dot, ending = name.rpartition(b".")
    return bool(dot) and ending.lower() in KNOWN


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
