"""Tables of features as CSV: a column for each feature, e0, e1, ..., as pandas and R read them.

neighbors is JSON text. The description is in a file beside it: `features.csv.json`.

A spreadsheet runs a cell that begins with a formula's sign. A path that does gets "./" before it,
which opens the same file; another text gets an apostrophe, which `read` takes away.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.files import read_text

ROWS = 1024  # in memory as text at a time
TEXTS = ("path", "split", "label")
_FORMULA = re.compile("[=+\\-@\t\r]")
ENCODING = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


def require() -> None:
    """Python reads CSV itself."""


def check_name(name: str) -> None:
    """Any name can be written."""


def description_file(path: Path) -> Path:
    """The file beside a table that holds its description."""
    return path.with_name(f"{path.name}.json")


def write(path: Path, columns: dict[str, Any], description: str | None) -> None:
    """Write a row at a time; numbers have the digits that float32 needs."""
    features = columns["embedding"]
    names = [name for name in columns if name != "embedding"]
    with path.open("w", **ENCODING) as file:
        writer = csv.writer(file)  # its lines end with \r\n, so that it quotes a name with either
        writer.writerow([*names, *(f"e{n}" for n in range(features.shape[1]))])
        for row in range(len(features)):
            cells = [_cell(name, columns[name], row) for name in names]
            writer.writerow([*cells, *map(str, features[row])])


def _cell(name: str, column: Any, row: int) -> str:
    if name == "neighbors":
        ids, distances = (array[row] for array in column)
        return json.dumps({"ids": ids.tolist(), "distances": [float(str(d)) for d in distances]})
    value = column[row]
    if name not in TEXTS:
        return str(value)
    return safe(name, "" if value is None else value)


def safe(name: str, text: str) -> str:
    """The text of a column as a cell that no spreadsheet runs."""
    if name == "path":
        return f"./{text}" if _FORMULA.match(text) else text
    return f"'{text}" if _FORMULA.match(text.lstrip("'")) else text


def read(path: Path) -> tuple[dict[str, Any], str | None]:
    """The columns of a table, and its description if one is beside it. Raises: any exception."""
    csv.field_size_limit(2**27)
    with path.open(**ENCODING) as file:
        rows = csv.reader(file)
        columns = _columns([name.removeprefix("\ufeff") for name in next(rows, [])], rows)
    return columns, read_description(path)


def read_description(path: Path) -> str | None:
    """The text of the description, None if there is none beside it. Raises: any exception."""
    beside = description_file(path)
    return read_text(beside) if beside.is_file() else None


def _columns(names: list[str], rows: Iterator[list[str]]) -> dict[str, Any]:
    place = {name: n for n, name in enumerate(names)}
    width = next(n for n in range(len(names) + 1) if f"e{n}" not in place)
    if "path" not in place or ("embedding" not in place and not width):
        shown = ", ".join(names[:8]) or "nothing"
        raise ValueError(f"its columns are {shown}; path and embedding, or e0, e1, ..., are needed")
    texts: dict[str, list[Any]] = {name: [] for name in TEXTS if name in place}
    numbers: dict[str, list[Any]] = {name: [] for name in ("x", "y", "neighbors") if name in place}
    embedding, waiting = [], []
    for row in rows:
        if len(row) != len(names):
            raise ValueError(f"a row has {len(row)} cells, and the first line names {len(names)}")
        for name, values in texts.items():
            values.append(_text(name, row[place[name]]))
        for name, values in numbers.items():
            cell = row[place[name]]
            values.append(json.loads(cell) if name == "neighbors" else float(cell))
        where = [place[f"e{n}"] for n in range(width)]
        waiting.append([row[n] for n in where] if width else json.loads(row[place["embedding"]]))
        if len(waiting) == ROWS:
            embedding.append(np.array(waiting, np.float32))
            waiting = []
    if waiting or not embedding:
        embedding.append(np.array(waiting, np.float32).reshape(len(waiting), -1))
    found: dict[str, Any] = {**texts, "embedding": np.concatenate(embedding)}
    found |= {name: np.array(numbers[name], np.float32) for name in ("x", "y") if name in numbers}
    if "neighbors" in numbers:
        ids, distances = (
            [row[key] for row in numbers["neighbors"]] for key in ("ids", "distances")
        )
        found["neighbors"] = np.array(ids, np.int64), np.array(distances, np.float32)
    return found


def _text(name: str, cell: str) -> str | None:
    if name == "path":
        return cell
    if cell.startswith("'") and _FORMULA.match(cell.lstrip("'")):
        cell = cell[1:]
    return (cell or None) if name == "label" else cell
