"""Parquet files of images, as Hugging Face writes them."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.data.by_machine import Copied
from selfsight.data.formats import as_image
from selfsight.data.labels import as_classes
from selfsight.data.names import NameBlock, numbered
from selfsight.data.source import BadImage, Unreachable, first_line
from selfsight.errors import UserError
from selfsight.files import state_of

KEPT = 2**31  # bytes of images in memory; a smaller data set is read once
LABELS = ("label", "labels", "fine_label")  # names of columns; the first found is used
ARRAYS = ("image", "images", "img", "pixels", "array", "x", "data")  # columns of arrays
SAVED = "state.json"  # a file that `save_to_disk` writes into the folder of every split


class Parquet(Copied):
    """Parquet files with a column of images and optionally a column of labels.

    An image is a struct {bytes, path}, or an array of numbers: lists of lists, (H, W), (H, W, C),
    or (C, H, W) where the first axis alone is the number of channels.

    The smallest part of a parquet file that can be read is a row group. A row group is read when
    one of its images is needed, and up to KEPT bytes of them stay in memory. If the images need
    more, reading them in random order reads a whole row group for almost every image.
    """

    def __init__(self, files: list[Path], labels: bool = True, channels: int = 3) -> None:
        pa = _pyarrow()
        self._files, self._footers = files, [_footer(file) for file in files]
        self._states = {str(file): state_of(file) for file in files}
        schema = self._footers[0].schema.to_arrow_schema()
        self._channels = channels
        self._image, self._kind = _image_column(schema)
        for file, footer in zip(files, self._footers, strict=True):
            names = footer.schema.to_arrow_schema().names
            if self._image not in names:
                raise UserError(
                    f"data.path={file}: no image column (struct with 'bytes', or lists of lists of "
                    f"numbers) among {names}"
                )
        self._places = [
            (n, g) for n, f in enumerate(self._footers) for g in range(f.num_row_groups)
        ]
        groups = [self._footers[n].row_group(g) for n, g in self._places]
        self._ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
        self._starts = np.cumsum([0] + [footer.num_rows for footer in self._footers])  # of files
        if not self._starts[-1]:
            raise UserError(f"data.path={files[0]}: contains no rows")
        sizes = [group.total_byte_size for group in groups]
        kept = len(sizes) if sum(sizes) <= KEPT else max(1, KEPT // max(sizes))
        self._kept = kept
        column = next((name for name in LABELS if name in schema.names), None)
        self.classes = self.labels = None
        if labels and column:
            where = f"data.path={files[0]}" + (" ..." if len(files) > 1 else "")
            try:
                tables = [pa.parquet.read_table(file, columns=[column]) for file in files]
                table = pa.concat_tables(tables, promote_options="permissive")
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{where}: column '{column}': {first_line(error)}") from None
            names = _class_names(schema, column)
            self.classes, self.labels = as_labels(table.column(column), names, where)

    @cached_property
    def _column(self) -> Callable[[int], Any]:
        return lru_cache(self._kept)(self._read_group)

    @cached_property
    def _turns(self) -> list[threading.Lock]:
        return [threading.Lock() for _ in self._places]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, i: int) -> bytes | np.ndarray:
        group = int(np.searchsorted(self._ends, i, "right"))
        try:
            with self._turns[group]:  # so that only one thread reads the row group
                column = self._column(group)
        except MemoryError:
            raise
        except (_pyarrow().ArrowException, OSError) as error:
            path = str(self._files[self._places[group][0]])
            if getattr(error, "errno", None) is not None:  # of the disk, not of the content
                raise Unreachable(error.errno, os.strerror(error.errno), path) from None
            self._check_same(path)
            raise BadImage(self.name(i), first_line(error)) from None
        value = column[i - int(self._ends[group])].as_py()  # counted from the group's end
        if value is None:
            raise BadImage(self.name(i), "its bytes are missing in the file")
        return value if self._kind is None else self._array(value, i)

    def _array(self, value: Any, i: int) -> np.ndarray:
        """(H, W, C) of an image that is lists of lists."""
        try:
            array = np.array(value, self._kind)
        except (ValueError, TypeError, OverflowError):  # rows of several lengths, missing values
            array = np.empty(0)
        if array.ndim not in (2, 3) or not array.size:
            raise BadImage(self.name(i), "is not an array (H, W) or (H, W, channels) of numbers")
        return np.ascontiguousarray(as_image(array, self._channels))

    def files(self) -> list[Path]:
        return self._files

    def name_blocks(self) -> Iterator[NameBlock]:
        for file, rows in zip(self._files, np.diff(self._starts), strict=True):
            yield from numbered(f"{file} row", int(rows))

    def _read_group(self, group: int) -> Any:
        """The images of a row group, as a pyarrow column of bytes or of lists."""
        pa, (n, g) = _pyarrow(), self._places[group]
        self._check_same(str(self._files[n]))
        with pa.parquet.ParquetFile(self._files[n], metadata=self._footers[n]) as file:
            table = file.read_row_group(g, columns=[self._image], use_threads=False)
        column = table.column(0)
        return column if self._kind else pa.compute.struct_field(column, "bytes")

    def _check_same(self, path: str) -> None:
        """Raises: UserError if the file is not the one whose row groups are known."""
        size, time = state_of(path)
        if size < self._states[path][0]:
            raise UserError(f"data.path={path}: cut short meanwhile; restore it")
        if (size, time) != self._states[path]:
            raise UserError(f"data.path={path}: changed since it was opened; restore it")

    def name(self, i: int) -> str:
        n = int(np.searchsorted(self._starts, i, "right")) - 1
        return f"{self._files[n]} row {i - self._starts[n]}"


def library(source: str, *modules: str) -> Any:
    """The first of these modules; all are imported."""
    try:
        first, *_ = map(import_module, modules)
        return first
    except ImportError:
        raise UserError(
            f"data.source={source} needs {modules[0]}: pip install 'selfsight[{source}]'"
        ) from None


_pyarrow = partial(library, "parquet", "pyarrow", "pyarrow.compute", "pyarrow.parquet")


def _image_column(schema: Any) -> tuple[str | None, np.dtype | None]:
    """The name of the column of images, and for arrays the type of their numbers; None, None if
    there is none."""
    types = _pyarrow().types
    for field in schema:
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return field.name, None
    arrays = {}
    for field in schema:
        depth, kind = 0, getattr(field.type, "storage_type", field.type)
        while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            depth, kind = depth + 1, kind.value_type
        if depth in (2, 3) and (types.is_integer(kind) or types.is_floating(kind)):
            arrays[field.name] = np.dtype(kind.to_pandas_dtype())
    names = [name for name in arrays if name.lower() in ARRAYS] or list(arrays)
    return (names[0], arrays[names[0]]) if len(names) == 1 else (None, None)


def _footer(file: Path) -> Any:
    """The metadata of a parquet file: its columns and row groups."""
    pa = _pyarrow()
    try:
        return pa.parquet.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        reason = first_line(error)
        raise UserError(f"data.path={file}: not readable as parquet: {reason}") from None


def _class_names(schema: Any, column: str) -> list[str] | None:
    """The names of the classes, which Hugging Face writes into the schema's metadata."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return list(features[column]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def as_labels(
    column: Any, names: list[str] | None, where: str
) -> tuple[list[str] | None, np.ndarray | None]:
    """Classes and labels (N,) of a pyarrow column, see `as_classes`; None without labels.

    Args:
        names: the names of the classes; None: the values in the column are the names.
    Raises: UserError if some images have labels and others have none.
    """
    pa = _pyarrow()
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_signed_integer(column.type):  # data sets of the hub use -1 for hidden labels
        column = pa.compute.if_else(pa.compute.less(column, 0), None, column)
    if column.null_count:
        if column.null_count == len(column):
            return None, None
        raise UserError(
            f"{where}: {column.null_count} of {len(column)} images have no label; label all, or "
            f"read none with data.labels=false"
        )
    if pa.types.is_nested(column.type):
        raise UserError(
            f"{where}: labels are of type {column.type}: an image has several, and no class; "
            f"ignore them with data.labels=false"
        )
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        try:
            column = column.cast(pa.string())
        except pa.ArrowException:
            raise UserError(
                f"{where}: labels of type {column.type} are not UTF-8; write them as text or whole "
                f"numbers, or ignore them with data.labels=false"
            ) from None
    values = column.to_numpy()
    if names is None or values.dtype.kind not in "iu":
        values = values if values.dtype != object else values.astype(str)
        return as_classes(values, len(values), where)
    if values.max() >= len(names):
        raise UserError(f"{where}: label {values.max()}, but only {len(names)} classes are named")
    return names, values.astype(np.int64)
