"""Images listed in a text file with or without labels: lines, JSON, or a table of values."""

import csv
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.data.formats import joined
from selfsight.data.labels import parse_label
from selfsight.data.names import NameBlock, blocks
from selfsight.data.packed_strings import PackedStrings
from selfsight.data.sources.files import Files, is_image, read_file
from selfsight.data.sources.tables import (
    IMAGE_KEYS,
    LABEL_KEYS,
    Row,
    chained,
    is_content,
    is_table,
    table_rows,
    without_mark,
)
from selfsight.errors import UserError

ENDINGS = {".txt", ".list", ".lst", ".jsonl", ".json", ".csv", ".tsv"}
BAND = b"{band}"
_KINDS = {int: "a number as label", str: "a name as label", type(None): "no label"}


class ListFile(Files):
    """Images in the order of a UTF-8 list; no image file is opened before it is read.

    A line is `path label`, where the path may contain spaces, or a JSON object with one of
    IMAGE_KEYS and optionally one of LABEL_KEYS. Empty lines and lines that start with # are
    skipped. A last word with the ending of an image file is part of the path, not a label. A .csv
    or .tsv file is a table, with or without a first line that names its columns; a .json file is a
    list of such objects, or {path: label}. Labels are class numbers from 0, or class names, which
    are numbered in sorted order. Relative paths start at `folder`.

    With names of bands, an image is several files: each path holds "{band}", which stands for each
    of them.
    """

    def __init__(
        self,
        file: Path,
        folder: Path,
        labels: bool = True,
        bands: tuple[str, ...] | None = None,
    ) -> None:
        """Raises: UserError that names the first wrong line by its number."""
        self.bands = bands
        if not folder.is_dir():
            raise UserError(f"data.image_dir={folder}: no such folder")
        self._folder = os.fsencode(folder)
        self.notes: list[str] = []
        gathered = _Labels() if labels else None
        try:
            with file.open("rb") as lines:
                self._paths = PackedStrings.of(self._read(file, lines, gathered))
        except OSError as error:
            raise UserError(f"data.path={file}: {error.strerror}") from None
        if not len(self):
            raise UserError(f"data.path={file}: lists no images")
        self.classes, self.labels = gathered.numbered() if gathered else (None, None)

    def __len__(self) -> int:
        return len(self._paths)

    def _path(self, i: int) -> bytes:
        return os.path.join(self._folder, self._paths.raw(i))

    def name_blocks(self) -> Iterator[NameBlock]:
        for rows in blocks(len(self)):
            names, prefix = self._paths.part(rows.start, rows.stop), os.path.join(self._folder, b"")
            if os.name != "posix" or any(name.startswith(b"/") for name in names):
                names, prefix = [os.path.join(self._folder, name) for name in names], b""
            yield prefix, names

    def _files(self, i: int) -> list[bytes]:
        """The paths of the files of an image, one for each band."""
        path = self._path(i)
        return [path.replace(BAND, os.fsencode(band)) for band in self.bands or [BAND.decode()]]

    def read(self, i: int) -> bytes:
        """One file, or the files of all bands, joined."""
        if self.bands is None:
            return super().read(i)
        return joined([read_file(path) for path in self._files(i)])

    def files(self) -> Iterator[bytes]:
        for i in range(len(self)):
            yield from self._files(i)

    def _read(
        self, file: Path, lines: Iterable[bytes], labels: "_Labels | None"
    ) -> Iterator[bytes]:
        """The path on each line; its label is added to `labels`."""
        number = 1
        rows = _rows(file.suffix.lower(), lines, self.notes)
        while True:
            try:
                row = next(rows, None)
                if row is None:
                    return
                number, path, label = row
                if b"\0" in path:
                    raise ValueError("the path contains a zero byte")
                self._check_bands(path)
                if labels is not None:
                    labels.add(label)
            except UnicodeDecodeError as error:
                where = getattr(error, "line", number)
                raise UserError(f"data.path={file}:{where}: is not UTF-8") from None
            except (ValueError, csv.Error) as error:
                where = getattr(error, "line", number)
                raise UserError(f"data.path={file}:{where}: {error}") from None
            yield path

    def _check_bands(self, path: bytes) -> None:
        """Raises: ValueError for a path that does not fit data.bands."""
        if self.bands and BAND not in path:
            raise ValueError("the path has no {band}, which data.bands are names for")
        if not self.bands and BAND in path and not os.path.exists(self._folder + b"/" + path):
            raise ValueError("the path has {band}; say what it stands for: data.bands=[B02, B03]")


class _Labels:
    """The labels of all lines, checked one by one; names are numbered in order of appearance."""

    def __init__(self) -> None:
        self._kind: type | None = None
        self._numbers = array("q")
        self._names: dict[str, int] = {}

    def add(self, label: Any) -> None:
        """Raises: ValueError that says why the label is refused."""
        if label is not None and label.__hash__ and label in self._names:
            label = str(label)
        elif label is not None:
            label = parse_label(label)
        kind = type(label)
        if kind is not self._kind:
            if self._kind is not None:
                this, before = _KINDS[kind], _KINDS[self._kind]
                raise ValueError(f"has {this}, but the lines before have {before}")
            self._kind = kind
        if kind is str:
            self._numbers.append(self._names.setdefault(label, len(self._names)))
        elif kind is int:
            self._numbers.append(label)

    def numbered(self) -> tuple[list[str] | None, np.ndarray | None]:
        """Classes and labels (N,); None and None if the lines have no labels."""
        numbers = np.frombuffer(self._numbers, np.int64)
        if self._kind is int:
            found, labels = np.unique(numbers, return_inverse=True)
            return [str(n) for n in found.tolist()], labels.astype(np.int64)
        if self._kind is str:
            classes = sorted(self._names)
            rank = np.empty(len(classes), np.int64)  # order of appearance -> sorted order
            rank[[self._names[name] for name in classes]] = np.arange(len(classes))
            return classes, rank[numbers]
        return None, None


# The forms of a list ------------------------------------------------------------------------------


def _rows(ending: str, lines: Iterable[bytes], notes: list[str]) -> Iterator[Row]:
    """The rows of a list of any form. Raises: ValueError, in which `line` is its line if known."""
    numbered = without_mark(lines)
    if ending == ".json":
        return _json_rows(b"".join(line for _, line in numbered))
    if ending in (".csv", ".tsv"):
        return table_rows(numbered, notes)
    first = next(((n, line) for n, line in numbered if is_content(line)), None)
    if first is None:
        return iter(())
    rest = chained(first, numbered)
    if ending != ".jsonl" and is_table(first[1]):
        return table_rows(rest, notes)
    start = first[1].lstrip()
    json_lines = ending == ".jsonl" or (start.startswith(b"{") and not start.startswith(BAND))
    return _line_rows(rest, _parse_json if json_lines else _parse_text)


def _line_rows(
    lines: Iterator[tuple[int, bytes]], parse: Callable[[bytes], tuple[bytes, Any]]
) -> Iterator[Row]:
    for number, line in lines:
        if is_content(line):
            try:
                yield number, *parse(line.strip())
            except ValueError as error:
                error.line = number
                raise


def _parse_text(line: bytes) -> tuple[bytes, int | str | None]:
    line.decode()  # only a check of UTF-8: bytes are split at ASCII spaces alone, text is not
    words = line.rsplit(None, 1)
    if len(words) == 1 or is_image(words[1]):
        return line, None
    path, label = words
    before = path.rsplit(None, 1)
    if label.isdigit() and len(before) == 2 and before[1].isdigit() and not is_image(path):
        end = next((word for word in reversed(path.split()) if not word.isdigit()), b"")
        if is_image(end):
            raise ValueError(f"several numbers follow '{end.decode()}': an image has one class")
    number = label.isdigit() or (label.startswith(b"-") and label[1:].isdigit())
    return path, int(label) if number else label.decode()


def _parse_json(line: bytes) -> tuple[bytes, Any]:
    item = _loaded(line)
    if not isinstance(item, dict):
        raise ValueError("is not a JSON object {...}")
    return _of_object(item)


def _loaded(text: bytes) -> Any:
    try:
        return json.loads(text.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("is JSON nested too deeply") from None


def _of_object(item: dict[str, Any]) -> tuple[bytes, Any]:
    path, label = (
        next((item[key] for key in keys if key in item), None) for keys in (IMAGE_KEYS, LABEL_KEYS)
    )
    if not isinstance(path, str) or not path:
        raise ValueError(f"names no image: needs one of {', '.join(IMAGE_KEYS)}")
    # As in os.fsencode, a surrogate stands for a byte that is not UTF-8.
    return path.encode(errors="surrogateescape"), label


def _json_rows(text: bytes) -> Iterator[Row]:
    """[{"path": ..., "label": ...}, ...], [[path, label], ...], or {path: label, ...}."""
    found = _loaded(text)
    if isinstance(found, dict) and {"images", "annotations"} <= found.keys():
        raise ValueError(
            "is in COCO's form, in which an image has boxes and several labels; write a list of "
            '{"path": ..., "label": ...}'
        )
    if isinstance(found, dict):
        found = [{"path": path, "label": label} for path, label in found.items()]
    if not isinstance(found, list):
        raise ValueError('is neither a list of {"path": ..., "label": ...} nor {path: label}')
    for number, item in enumerate(found, 1):
        if isinstance(item, list) and len(item) in (1, 2):
            path, label = (*item, None)[:2]
            item = {"path": path, "label": label}
        if isinstance(item, str):
            item = {"path": item}
        if not isinstance(item, dict):
            raise ValueError(f"item {number} is not an object {{...}}")
        yield number, *_of_object(item)
