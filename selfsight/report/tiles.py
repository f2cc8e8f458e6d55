"""Contact sheets of a table's images: a line for each query, group or part of a cluster."""

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selfsight.config import validate
from selfsight.data.config import DataConfig
from selfsight.data.decode import decode, decode_bytes
from selfsight.data.source import BadImage, Decoding, Source
from selfsight.data.sources.open import is_local, open_source, with_range
from selfsight.embeddings.table import Table
from selfsight.errors import UserError, printable
from selfsight.files import write_atomically
from selfsight.report.sheet import MARGIN, as_picture, paste, reduced

SPLITS = ("train", "test")
SIDE = 112  # pixels of a picture's longest side
GRAY = np.full((SIDE, SIDE, 3), 200, np.uint8)  # in place of an image that cannot be read


class Tile(NamedTuple):
    """A picture of a sheet: an image of a table or of a file, and the lines below it."""

    image: int | Path
    caption: list[str]


class Pictures:
    """The images of a table, where they can be read: its paths are files, or its description says
    which images they are and those can be opened (a pack, Parquet, the digits).

    Attributes:
        missing: how many were asked for that could not be read.
    """

    def __init__(self, table: Table) -> None:
        self.missing = 0
        self._table = table
        self._data = _data_of(table)
        data = self._data or DataConfig()
        values = data.range if isinstance(data.range, tuple) else None
        self._how = Decoding(values, False, data.max_pixels, data.channels, data.bits)

    def picture(self, image: int | Path) -> np.ndarray:
        """(h, w, 3) uint8 of at most SIDE pixels; gray if it cannot be read.

        Args:
            image: a row of the table, or a file.
        """
        try:
            pixels = self._of_row(image) if isinstance(image, int) else self._of_file(str(image))
        except (BadImage, OSError):
            pixels = None
        if pixels is None:
            self.missing += 1
            return GRAY
        return as_picture(reduced(pixels, SIDE, square=False))

    def _of_file(self, path: str) -> np.ndarray:
        return decode_bytes(Path(path).read_bytes(), path, self._how)

    def _of_row(self, row: int) -> np.ndarray | None:
        path = self._table.paths[row]
        if os.path.isfile(path):
            return self._of_file(path)
        splits = self._table.splits
        for split in SPLITS if splits is None else (splits[row],):
            if (split, path) in self._named:
                return decode(*self._named[split, path])
        return None

    @cached_property
    def _named(self) -> dict[tuple[str, str], tuple[Source, int]]:
        """The images that the description names, by split and name."""
        try:
            found = {} if self._data is None else _opened(self._data)
            return {(s, x.name(i)): (x, i) for s, x in found.items() for i in range(len(x))}
        except (UserError, OSError):  # they are not on this machine
            return {}


def _data_of(table: Table) -> DataConfig | None:
    """How the table's images were read, if it says so."""
    try:
        return validate(DataConfig, (table.description or {}).get("data"))
    except UserError:
        return None


def _opened(data: DataConfig) -> dict[str, Source]:
    """The splits. No code of a user's own is run and nothing is downloaded: a table may be a
    stranger's."""
    if not is_local(data):
        return {}
    train = open_source(data, "train")
    test = open_source(with_range(data, train), "test")
    return {"train": train} if test is None else {"train": train, "test": test}


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
    sheet = paste(found, SIDE, captions, MARGIN if first_apart else 0)
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
