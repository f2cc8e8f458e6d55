"""The results of a grid as its folder holds them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfsight.files import Damaged, is_number, read_json
from selfsight.report.rows import Cell

TABLE = "table.json"
Place = tuple[str, str, str, int]  # data set, method, backbone, seed of a cell


@dataclass(frozen=True)
class StoredGrid:
    """A grid's folder.

    Attributes:
        cells: with their results, or the reason why there are none.
        about: test images, hardware and versions, as the tables show them.
        runs: the folder of each cell's pretraining, where there is one.
        notes: what a reader must know of how the cells were read, a sentence each.
    """

    folder: Path
    cells: list[Cell]
    about: dict[str, Any]
    runs: Mapping[Place, Path] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_table(file: Path) -> tuple[list[Cell], dict[str, Any]]:
    """The cells of a table.json and what it says about the grid.

    Raises: Damaged if it holds anything but what `report.table.to_json` writes.
    """
    tree = read_json(file)
    cells, about = tree.get("cells"), tree.get("about")
    if not isinstance(cells, list) or not isinstance(about, dict):
        raise Damaged(file, "it is no table of a grid (no cells in it)")
    found = [_cell(cell, file) for cell in cells]
    places = [place(cell) for cell in found]
    if len(set(places)) < len(places):
        raise Damaged(file, "it has two cells of one data set, method, backbone and seed")
    return found, _about(about, file)


def place(cell: Cell) -> Place:
    """What tells a cell from the others of its grid."""
    return cell.data, cell.method, cell.backbone, cell.seed


def _cell(tree: Any, file: Path) -> Cell:
    try:
        cell = Cell(**tree)
    except (TypeError, ValueError, AttributeError) as error:
        raise Damaged(file, f"it has no valid cell: {error}") from None
    texts = (cell.data, cell.method, cell.backbone, "" if cell.error is None else cell.error)
    costs = (cell.minutes, cell.memory_mib, cell.images_per_second)
    right = all(isinstance(text, str) for text in texts) and type(cell.seed) is int
    right = right and all(c is None or (is_number(c) and 0 <= c < math.inf) for c in costs)
    if not right:
        raise Damaged(file, f"it has a cell with a value of another type: {cell}")
    return cell


def _about(tree: dict[str, Any], file: Path) -> dict[str, Any]:
    """The keys that tables show, each of its type."""
    images, versions = tree.get("test_images", {}), tree.get("versions", {})
    right = isinstance(images, dict) and isinstance(versions, dict)
    right = right and all(type(n) is int and n > 0 for n in images.values())
    right = right and all(isinstance(v, str) for v in versions.values())
    texts = [tree.get(key, "") for key in ("title", "hardware")]
    if not right or not all(isinstance(text, str) for text in texts):
        raise Damaged(file, "what it says about the grid has values of other types")
    return tree
