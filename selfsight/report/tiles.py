"""Contact sheets of a table's images: a line for each query, group or part of a cluster."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selfsight.config import validate
from selfsight.data.config import PATHS, DataConfig
from selfsight.data.decode import decode, decode_bytes
from selfsight.data.source import BadImage, Decoding, Source
from selfsight.data.sources.kinds import KINDS
from selfsight.data.sources.open import open_source
from selfsight.embeddings.table import Table
from selfsight.errors import UserError, printable
from selfsight.files import write_atomically
from selfsight.report.sheet import MARGIN, _original, _paste, as_picture

SIDE = 112  # pixels of a picture's longest side
GRAY = np.full((SIDE, SIDE, 3), 200, np.uint8)  # in place of an image that cannot be read
SPLITS = ("train", "test")


class Tile(NamedTuple):
    """A picture of a sheet: an image of a table or of a file, and the lines below it."""

    image: int | Path
    caption: list[str]


@dataclass
class Pictures:
    """The images of a table, where they can be read: its paths are files, or its description says
    which images they are and those can be opened (a pack, Parquet, the digits).

    Attributes:
        missing: how many were asked for that could not be read.
    """

    table: Table
    missing: int = 0
    _named: dict[str, tuple[Source, int]] | None = None

    def picture(self, image: int | Path) -> np.ndarray:
        """(h, w, 3) uint8 of at most SIDE pixels; gray if it cannot be read."""
        pixels = self._pixels(str(image) if isinstance(image, Path) else self.table.paths[image])
        if pixels is None:
            self.missing += 1
            return GRAY
        return as_picture(_original(pixels, SIDE, square=False))

    def _pixels(self, name: str) -> np.ndarray | None:
        try:
            if os.path.isfile(name):
                return decode_bytes(Path(name).read_bytes(), name, self._decoding())
            if self._named is None:
                self._named = _by_name(self._data())
            found = self._named.get(name)
            return None if found is None else decode(*found)
        except (BadImage, OSError):
            return None

    def _data(self) -> dict:
        found = (self.table.description or {}).get("data")
        return found if isinstance(found, dict) else {}

    def _decoding(self) -> Decoding:
        about, data = self.table.description or {}, self._data()
        scale = data.get("range")
        values = tuple(scale) if isinstance(scale, (list, tuple)) else None
        return Decoding(values, channels=about.get("channels", 3), bits=data.get("bits", 8))


def _by_name(data: dict) -> dict[str, tuple[Source, int]]:
    """The images that a description names, by their names. No code of a user's own is run and
    nothing is downloaded: a table may be a stranger's."""
    places = str([data.get(key) for key in PATHS])
    if data.get("source", "auto") not in ("auto", "digits", *KINDS) or "://" in places:
        return {}
    try:
        config = validate(DataConfig, data)
        found = [open_source(config, split) for split in SPLITS]
    except (UserError, OSError):  # they are not on this machine
        return {}
    sources = [source for source in found if source is not None]
    return {source.name(i): (source, i) for source in sources for i in range(len(source))}


def draw_tiles(
    pictures: Pictures, lines: list[list[Tile]], output: Path, first_apart: bool
) -> None:
    """Write a PNG file with a line of tiles for each list; images that cannot be read are gray.

    Args:
        pictures: of the table that the tiles are of; counts what is missing.
        first_apart: the first picture of a line stands apart, as a query does.
    """
    found = [[pictures.picture(tile.image) for tile in line] for line in lines]
    captions = [[[printable(text) for text in tile.caption] for tile in line] for line in lines]
    sheet = _paste(found, SIDE, captions, MARGIN if first_apart else 0)
    write_atomically(output, lambda path: sheet.save(path, "PNG"))


def check_sheet(output: Path | None, files: Iterable[str | Path]) -> None:
    """Before long work: a sheet is a PNG file, and replaces none of these files.

    Raises: UserError if it would not.
    """
    if output is None:
        return
    if output.suffix.lower() != ".png":
        raise UserError(f"'{output}': a sheet is written as PNG; give a name that ends with .png")
    for file in files:
        if str(file).endswith(output.name) and os.path.realpath(file) == os.path.realpath(output):
            raise UserError(f"'{output}': is one of the images; give the sheet another name")
