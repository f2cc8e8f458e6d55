"""Lists as tables: rows of cells, one of them the path of an image; a first row may name the
columns."""

import codecs
import csv
from collections.abc import Iterable, Iterator
from typing import Any

from selfsight.data.sources.files import is_image

IMAGE_KEYS = ("filename", "file_name", "file", "path", "image", "img")  # the first found is used
IMAGE_KEYS += ("image_path", "filepath", "image_id", "id")
LABEL_KEYS = ("label", "class", "target", "category")
LABEL_KEYS += ("labels", "class_name", "classname", "category_id", "y")

Row = tuple[int, bytes, Any]  # the line's number, the path, the label or None


def chained(first: tuple[int, bytes], rest: Iterator[tuple[int, bytes]]) -> Iterator:
    yield first
    yield from rest


def without_mark(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(lines, 1):
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def is_content(line: bytes) -> bool:
    return bool(line.strip()) and not line.strip().startswith(b"#")


def is_table(line: bytes) -> bool:
    """Whether a first line has several cells, of which one is an image or the name of a column."""
    sign = _delimiter(line)
    cells = [cell.strip() for cell in line.strip().split(sign.encode())]
    names = {cell.decode(errors="replace").lower() for cell in cells}
    named = not names.isdisjoint(IMAGE_KEYS)
    if sign == "\t":  # between path and label it is a space as any other, unless both are named
        return named and not names.isdisjoint(LABEL_KEYS)
    return len(cells) > 1 and (named or any(map(is_image, cells[:-1])))


def _delimiter(line: bytes) -> str:
    return next((sign for sign in ",\t;" if sign.encode() in line), ",")


def table_rows(lines: Iterator[tuple[int, bytes]], notes: list[str]) -> Iterator[Row]:
    first = next(((n, line) for n, line in lines if is_content(line)), None)
    if first is None:
        return
    places: tuple[int, int | None] | None = None
    reader = csv.reader(
        _decoded(chained(first, lines)), delimiter=_delimiter(first[1]), skipinitialspace=True
    )
    for cells in reader:
        cells = [cell.strip() for cell in cells]
        if not any(cells) or cells[0].startswith("#"):
            continue
        number = first[0] + reader.line_num - 1
        try:
            if places is None:
                *places, header = _columns(cells, notes)
                if header:
                    continue
            path, label = (None if at is None else cells[at : at + 1] for at in places)
            if not path or not path[0] or label == []:
                raise ValueError(f"has {len(cells)} cells, the lines before have more")
        except ValueError as error:
            error.line = number
            raise
        yield number, path[0].encode(errors="surrogateescape"), label and (label[0] or None)


def _decoded(lines: Iterator[tuple[int, bytes]]) -> Iterator[str]:
    for number, line in lines:
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            error.line = number
            raise


def _columns(cells: list[str], notes: list[str]) -> tuple[int, int | None, bool]:
    """The columns of path and label, and whether these cells are their names."""
    names = [cell.lower() for cell in cells]
    path = next((names.index(key) for key in IMAGE_KEYS if key in names), None)
    header = path is not None
    if header:
        label = next((names.index(key) for key in LABEL_KEYS if key in names), None)
    else:
        path, label = next((n for n, cell in enumerate(cells) if is_image(cell.encode())), 0), None
    if label is None and len(cells) == 2:
        label = 1 - path
    if label is None and len(cells) > 2:
        others = ", ".join(cell for n, cell in enumerate(cells) if n != path)
        if not header:
            raise ValueError(
                f"has {len(cells)} cells ({others} beside the image); name the columns in a first "
                f"line such as path,label"
            )
        notes.append(
            f"data.path: no column of labels among {others}; known: {', '.join(LABEL_KEYS)}"
        )
    return path, label, header
