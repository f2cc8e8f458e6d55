"""Images listed in a text file, one per line, with or without labels."""

import codecs
import json
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.data.packed_strings import PackedStrings
from selfsight.data.sources.folder import ENDINGS as IMAGE_ENDINGS
from selfsight.data.sources.folder import Files
from selfsight.errors import UserError

ENDINGS = {".txt", ".list", ".lst", ".jsonl"}
IMAGE_KEYS = ("filename", "file_name", "file", "path", "image", "img")  # the first found is used
LABEL_KEYS = ("label", "class", "target", "category")
MOST_CLASSES = 10_000_000  # a larger number is not a class, but perhaps a date or an identifier
_KINDS = {int: "a number as label", str: "a name as label", type(None): "no label"}


class ListFile(Files):
    """Images in the order of a UTF-8 list; no image file is opened before it is read.

    A line is `path label`, where the path may contain spaces, or a JSON object with one of
    IMAGE_KEYS and optionally one of LABEL_KEYS. Empty lines and lines that start with # are
    skipped. A last word with the ending of an image file is part of the path, not a label. Labels
    are class numbers from 0, or class names, which are numbered in sorted order. Relative paths
    start at `folder`.
    """

    def __init__(self, file: Path, folder: Path, labels: bool = True) -> None:
        """Raises: UserError that names the first wrong line by its number."""
        if not folder.is_dir():
            raise UserError(f"data.image_dir={folder}: no such folder")
        self._folder = os.fsencode(folder)
        gathered = _Labels() if labels else None
        try:
            with file.open("rb") as lines:
                self._paths = PackedStrings.of(_paths(file, lines, gathered))
        except OSError as error:
            raise UserError(f"data.path={file}: {error.strerror}") from None
        if not len(self):
            raise UserError(f"data.path={file}: lists no images")
        self.classes, self.labels = gathered.numbered() if gathered else (None, None)

    def __len__(self) -> int:
        return len(self._paths)

    def files(self) -> Iterator[bytes]:
        return map(self._path, range(len(self)))

    def _path(self, i: int) -> bytes:
        return os.path.join(self._folder, self._paths.raw(i))


class _Labels:
    """The labels of all lines, checked one by one; names are numbered in order of appearance."""

    def __init__(self) -> None:
        self._kind: type | None = None
        self._numbers = array("q")
        self._names: dict[str, int] = {}

    def add(self, label: Any) -> None:
        """Raises: ValueError that says why the label is refused."""
        kind = type(label)
        if kind is not self._kind:
            if kind not in _KINDS:
                raise ValueError(f"label {label!r:.80} is neither a whole number nor a name")
            if self._kind is not None:
                this, before = _KINDS[kind], _KINDS[self._kind]
                raise ValueError(f"has {this}, but the lines before have {before}")
            self._kind = kind
        if kind is str:
            self._numbers.append(self._names.setdefault(label, len(self._names)))
        elif kind is int:
            if not 0 <= label < MOST_CLASSES:
                raise ValueError(f"label {label} is not from 0 to {MOST_CLASSES - 1}")
            self._numbers.append(label)

    def numbered(self) -> tuple[list[str] | None, np.ndarray | None]:
        """Classes and labels (N,); None and None if the lines have no labels."""
        numbers = np.frombuffer(self._numbers, np.int64)
        if self._kind is int:
            return [str(n) for n in range(int(numbers.max()) + 1)], numbers
        if self._kind is str:
            classes = sorted(self._names)
            rank = np.empty(len(classes), np.int64)  # order of appearance -> sorted order
            rank[[self._names[name] for name in classes]] = np.arange(len(classes))
            return classes, rank[numbers]
        return None, None


def _paths(file: Path, lines: Iterable[bytes], labels: _Labels | None) -> Iterator[bytes]:
    """The path on each line; its label is added to `labels`."""
    parse = _parse_json if file.suffix.lower() == ".jsonl" else None
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        line = line.strip()
        if not line or line.startswith(b"#"):
            continue
        parse = parse or (_parse_json if line.startswith(b"{") else _parse_text)
        try:
            path, label = parse(line)
            if b"\0" in path:
                raise ValueError("the path contains a zero byte")
            if labels is not None:
                labels.add(label)
        except UnicodeDecodeError:
            raise UserError(f"data.path={file}:{number}: is not UTF-8") from None
        except ValueError as error:
            raise UserError(f"data.path={file}:{number}: {error}") from None
        yield path


def _parse_text(line: bytes) -> tuple[bytes, int | str | None]:
    line.decode()  # only a check of UTF-8: bytes are split at ASCII spaces alone, text is not
    words = line.rsplit(None, 1)
    if len(words) == 1:
        return line, None
    path, label = words
    if label.isdigit() or (label.startswith(b"-") and label[1:].isdigit()):
        return path, int(label)
    if label.lower().endswith(IMAGE_ENDINGS):
        return line, None
    return path, label.decode()


def _parse_json(line: bytes) -> tuple[bytes, Any]:
    try:
        item = json.loads(line.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("is JSON nested too deeply") from None
    if not isinstance(item, dict):
        raise ValueError("is not a JSON object {...}")
    path, label = (
        next((item[key] for key in keys if key in item), None) for keys in (IMAGE_KEYS, LABEL_KEYS)
    )
    if not isinstance(path, str) or not path:
        raise ValueError(f"names no image: needs one of {', '.join(IMAGE_KEYS)}")
    # As in os.fsencode, a surrogate stands for a byte that is not UTF-8.
    return path.encode(errors="surrogateescape"), label
