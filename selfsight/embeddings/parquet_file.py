"""Tables of features as Parquet: a row group for each few thousand rows.

The embedding is a fixed-size list of float32, neighbors a struct {ids, distances} of lists; the
description is JSON in the metadata of the file, under the key `selfsight`.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.errors import UserError, printable

KEY = b"selfsight"  # of the metadata
ROWS = 8192  # of a row group, and of what is in memory at a time
TEXTS = ("path", "split", "label")


def require() -> None:
    """Raises: UserError if the library is missing."""
    _library()


def check_name(name: str) -> None:
    """Raises: UserError for the name of a file that is no UTF-8: its bytes may be any."""
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        raise UserError(
            f"'{printable(shown)}': Parquet holds UTF-8 text alone, and this name is other bytes; "
            f"rename the file, or write .npz or .csv"
        ) from None


def description_file(path: Path) -> None:
    """There is none: the description is in the file itself."""


def write(path: Path, columns: dict[str, Any], description: str | None) -> None:
    """Write a part of the rows at a time. Raises: UserError for a path that is no UTF-8."""
    pa = _library()
    schema = _schema(pa, columns)
    if description is not None:
        schema = schema.with_metadata({KEY: description.encode()})
    dictionaries = [name for name in ("split", "label") if name in columns]
    with pa.parquet.ParquetWriter(path, schema, use_dictionary=dictionaries) as writer:
        for start in range(0, len(columns["path"]), ROWS):
            part = {name: _part(column, start) for name, column in columns.items()}
            arrays = [_array(pa, schema.field(name).type, part[name]) for name in columns]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), ROWS)


def read(path: Path) -> tuple[dict[str, Any], str | None]:
    """The columns of a table, and its description if it has one. Raises: any exception."""
    pa = _library()
    with pa.parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        missing = [name for name in ("path", "embedding") if name not in schema.names]
        if missing:
            raise ValueError(f"no column '{missing[0]}' among {', '.join(schema.names)}")
        columns: dict[str, Any] = {
            name: _text(file, name) for name in TEXTS if name in schema.names
        }
        count = len(columns["path"])
        columns["embedding"] = _matrix(_lists(file, "embedding"), count)
        for name in ("x", "y"):
            if name in schema.names:
                columns[name] = file.read([name]).column(0).cast(pa.float32()).to_numpy()
        if "neighbors" in schema.names and pa.types.is_struct(schema.field("neighbors").type):
            ids = _matrix(_lists(file, "neighbors", "ids"), count, np.int64)
            distances = _matrix(_lists(file, "neighbors", "distances"), count)
            columns["neighbors"] = ids, distances
        return columns, _description(schema)


def read_description(path: Path) -> str | None:
    """The text of the description alone; None of another file. Raises: any exception."""
    return _description(_library().parquet.read_schema(path))


def _library() -> Any:
    try:
        found, *_ = map(import_module, ("pyarrow", "pyarrow.compute", "pyarrow.parquet"))
        return found
    except ImportError:
        raise UserError(
            "A table of features as .parquet needs pyarrow: pip install 'selfsight[parquet]'; "
            "or write .npz or .csv"
        ) from None


def _description(schema: Any) -> str | None:
    found = (schema.metadata or {}).get(KEY)
    return None if found is None else found.decode(errors="replace")


def _schema(pa: Any, columns: dict[str, Any]) -> Any:
    types = {name: pa.string() for name in TEXTS} | {"x": pa.float32(), "y": pa.float32()}
    types["embedding"] = pa.list_(pa.float32(), columns["embedding"].shape[1])
    lists = [("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))]
    types["neighbors"] = pa.struct(lists)
    return pa.schema([(name, types[name]) for name in columns])


def _part(column: Any, start: int) -> Any:
    rows = slice(start, start + ROWS)
    return tuple(array[rows] for array in column) if isinstance(column, tuple) else column[rows]


def _array(pa: Any, kind: Any, values: Any) -> Any:
    """Some rows of a column in Arrow's form."""
    if isinstance(values, tuple):
        lists = [
            pa.ListArray.from_arrays(
                np.arange(0, array.size + 1, array.shape[1], dtype=np.int32), array.ravel()
            )
            for array in values
        ]
        return pa.StructArray.from_arrays(lists, fields=[kind.field(n) for n in range(2)])
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    if kind == pa.string():
        for name in values:
            check_name(name or "")
    return pa.array(values, kind)


def _text(file: Any, name: str) -> list[str | None]:
    """Numbers, as of classes, become text."""
    values = file.read([name]).column(0)
    if name == "path" and values.null_count:
        raise ValueError("a path is missing")
    return [None if v is None else str(v) for v in values.to_pylist()]


def _lists(file: Any, name: str, inner: str | None = None) -> Iterator[Any]:
    """Some rows of a column of lists at a time."""
    for batch in file.iter_batches(ROWS, columns=[name]):
        column = batch.column(0)
        if inner is not None:
            column = column.field(inner)
        if column.null_count:
            raise ValueError(f"a row of '{name}' is missing")
        yield column


def _matrix(parts: Iterator[Any], count: int, kind: type = np.float32) -> np.ndarray:
    """(count, width) of lists, which must all have one length."""
    found, at = np.empty((count, 0), kind), 0
    for column in parts:
        flat = column.flatten()
        if flat.null_count:
            raise ValueError("a number of a list is missing")
        values = flat.to_numpy(zero_copy_only=False)
        width = len(values) // len(column)
        ends = getattr(column, "offsets", None)  # of a fixed-size list there are none
        if ends is not None and (np.diff(ends.to_numpy()) != width).any():
            raise ValueError("its lists of numbers have different lengths")
        if not at:
            found = np.empty((count, width), kind)
        found[at : at + len(column)] = values.reshape(len(column), width)
        at += len(column)
    return found
