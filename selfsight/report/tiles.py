"""Contact sheets of a table's images: a line for each query, group or part of a cluster."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selfsight.config import validate
from selfsight.data.config import PATHS, DataConfig, several
from selfsight.data.decode import decode, decode_bytes
from selfsight.data.source import BadImage, Decoding, Source
from selfsight.data.sources.kinds import KINDS
from selfsight.data.sources.open import open_source, with_range
from selfsight.embeddings.table import Table
from selfsight.errors import UserError, printable
from selfsight.files import write_atomically
from selfsight.report.sheet import MARGIN, _original, _paste, as_picture

SIDE = 112  # pixels of a picture's longest side
GRAY = np.full((SIDE, SIDE, 3), 200, np.uint8)  # in place of an image that cannot be read


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

    def _data(self) -> DataConfig | None:
        """How the table's images were read, if it says so."""
        try:
            return validate(DataConfig, (self.table.description or {}).get("data"))
        except UserError:
            return None

    def _decoding(self) -> Decoding:
        data = self._data() or DataConfig()
        values = data.range if isinstance(data.range, tuple) else None
        return Decoding(values, False, data.max_pixels, data.channels, data.bits)


def _by_name(data: DataConfig | None) -> dict[str, tuple[Source, int]]:
    """The images that a description names, by their names. No code of a user's own is run and
    nothing is downloaded: a table may be a stranger's."""
    if data is None or data.source not in ("auto", "digits", *KINDS):
        return {}
    if any("://" in path for key in PATHS for path in several(getattr(data, key))):
        return {}
    try:
        train = open_source(data, "train")
        sources = [train, open_source(with_range(data, train), "test")]
        named = [(source, i) for source in sources if source for i in range(len(source))]
    except (UserError, OSError):  # they are not on this machine
        return {}
    return {source.name(i): (source, i) for source, i in named}


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
