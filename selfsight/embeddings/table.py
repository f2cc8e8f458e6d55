"""A table of features: a row for each image, in a form that other tools read.

    path       string: of the file, ready to be opened; else a name, such as "digits test 5"
    split      string: train or test; absent if all images are of one
    label      string: the name of the class; absent without labels
    embedding  D float32
    x, y       float32: a projection onto a plane, if it was asked for
    neighbors  {ids, distances}: numbers of the nearest rows, from 0, and cosine distances; likewise

The ending of the file says its format: `.parquet` (needs the extra `parquet`), `.npz` or `.csv`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from selfsight.data.source import first_line
from selfsight.embeddings import csv_file, npz_file, parquet_file
from selfsight.errors import UserError
from selfsight.files import parse_json, write_atomically

FORMATS: dict[str, ModuleType] = {".parquet": parquet_file, ".npz": npz_file, ".csv": csv_file}
ROWS = 4096  # that are checked at a time


class Neighbours(NamedTuple):
    """The nearest other rows of each row, nearest first.

    Attributes:
        ids: (N, K) int64, numbers of rows from 0; distances: (N, K) float32, 1 - cosine.
    """

    ids: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True, eq=False)
class Table:
    """Features of images.

    Attributes:
        paths: of the files, or names of images that are no files.
        features: (N, D) float32, finite; may be mapped from a file.
        splits: "train" or "test" of each image, or None.
        labels: the class of each image; None of one without; or None without any.
        projection: (N, 2) float32, x and y, or None.
        neighbours: see there, or None.
        description: which encoder made them of which images: weights_sha256, num_features, data,
            ...; None of a table that another program wrote.
    Raises: UserError if the columns are not of one length, or if a feature is not finite.

    >>> Table(["a.jpg", "b.jpg"], np.zeros((2, 3), np.float32)).features.shape
    (2, 3)
    """

    paths: Sequence[str]
    features: np.ndarray
    splits: Sequence[str] | None = None
    labels: Sequence[str | None] | None = None
    projection: np.ndarray | None = None
    neighbours: Neighbours | None = None
    description: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        x, count = self.features, len(self.paths)
        if x.ndim != 2 or x.dtype != np.float32:
            raise UserError(f"embedding: must be float32 (N, D), found {x.dtype} {x.shape}")
        for name in ("features", "splits", "labels", "projection"):
            column = getattr(self, name)
            if column is not None and len(column) != count:
                raise UserError(f"{name}: has {len(column):,} rows, and path has {count:,}")
        if self.projection is not None and self.projection.shape[1:] != (2,):
            raise UserError(f"x, y: must be (N, 2), found {self.projection.shape}")
        if self.neighbours is not None:
            self._check_neighbours(*self.neighbours)
        for start in range(0, count, ROWS):
            odd = ~np.isfinite(x[start : start + ROWS]).all(1)
            if odd.any():
                row = start + int(odd.argmax())
                raise UserError(f"embedding: of row {row} ('{self.paths[row]}') is not finite")

    def _check_neighbours(self, ids: np.ndarray, distances: np.ndarray) -> None:
        if ids.ndim != 2 or len(ids) != len(self) or ids.shape != distances.shape:
            raise UserError(
                f"neighbors: must be ids and distances of each of {len(self):,} rows, found "
                f"{ids.shape} and {distances.shape}"
            )
        if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
            raise UserError(f"neighbors: ids must be numbers of rows, from 0 to {len(self) - 1:,}")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def width(self) -> int:
        """D, the number of features of an image."""
        return self.features.shape[1]

    def columns(self) -> dict[str, Any]:
        """The columns that are there, by their names in a file."""
        found: dict[str, Any] = {"path": self.paths, "split": self.splits, "label": self.labels}
        found["embedding"] = self.features
        if self.projection is not None:
            found |= {"x": self.projection[:, 0], "y": self.projection[:, 1]}
        if self.neighbours is not None:
            found["neighbors"] = self.neighbours
        return {name: column for name, column in found.items() if column is not None}


def format_of(path: Path) -> ModuleType:
    """What reads and writes files with this ending.

    Raises: UserError for another ending, or if the library for it is missing.
    """
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise UserError(
            f"'{path}': the ending of a table of features must be {', '.join(FORMATS)}; rename it"
        )
    found.require()
    return found


def read_table(path: str | Path) -> Table:
    """The table of features in a file.

    The file may be another program's if it has the columns path and embedding (numbers of one
    length; of a CSV also as columns e0, e1, ...): then its description is None.
    Raises: UserError if it is no such table, or damaged.

    >>> table = Table(["a.jpg"], np.ones((1, 4), np.float32), labels=["cat"])
    >>> write_table("features.npz", table)
    >>> read_table("features.npz").labels
    ['cat']
    """
    path = Path(path)
    reader = format_of(path)
    if not path.is_file():
        raise UserError(f"'{path}': no such file; `selfsight embed` writes tables of features")
    try:
        columns, text = reader.read(path)
        if not len(columns["path"]):
            raise UserError("the table has no rows")
        return _of_columns(columns, None if text is None else parse_json(text, path))
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"'{path}': {error}") from None
    # Of damaged files libraries raise more kinds of errors than their documentation lists.
    except Exception as error:
        raise UserError(f"'{path}': not a table of features: {first_line(error)}") from None


def write_table(path: str | Path, table: Table) -> None:
    """Write all rows; the file appears when it is complete, and replaces one of its name.

    The features are read a part at a time, so they may be mapped from a file larger than memory.
    A CSV's description is a file of its own beside it: `features.csv.json`.
    Raises: UserError for an ending that is not known, or for a name that the format cannot hold;
        OSError that names the file.
    """
    path = Path(path)
    writer = format_of(path)
    description = table.description
    text = None if description is None else json.dumps(description, sort_keys=True)
    beside = writer.description_file(path)
    if beside is not None:  # an old one must not be taken for that of the new table
        beside.unlink(missing_ok=True)
    columns = table.columns()
    write_atomically(path, lambda temporary: writer.write(temporary, columns, text))
    if beside is not None and text is not None:
        write_atomically(beside, lambda p: p.write_text(text + "\n", encoding="utf-8"))


def is_table(path: Path) -> bool:
    """Whether a file is a table that `write_table` made: such a file may be replaced by another."""
    try:
        text = format_of(path).read_description(path)
        return text is not None and "weights_sha256" in parse_json(text, path)
    except Exception:  # as in `read_table`
        return False


def _of_columns(columns: dict[str, Any], description: dict[str, Any] | None) -> Table:
    paths, features = columns["path"], columns["embedding"]
    both = [columns.get(name) for name in ("x", "y")]
    projection = None
    if not any(column is None for column in both):
        projection = np.stack(both, 1).astype(np.float32)
    found = columns.get("neighbors")
    neighbours = None if found is None else Neighbours(*found)
    splits, labels = columns.get("split"), columns.get("label")
    table = Table(paths, features, splits, labels, projection, neighbours, description)
    if description is not None:
        _check_description(description, table)
    return table


def _check_description(description: dict[str, Any], table: Table) -> None:
    """What other commands rely on."""
    sha, width = (description.get(key) for key in ("weights_sha256", "num_features"))
    if not isinstance(sha, str):
        raise UserError("its description names no weights_sha256; it is damaged")
    if width != table.width:
        raise UserError(f"its description says {width} features, and it has {table.width}")
