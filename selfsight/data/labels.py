"""Labels of any form as classes, and parts of labelled images that hold every class."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from selfsight import randomness
from selfsight.errors import UserError

REMEDY = "; label each image with one class, or ignore labels with data.labels=false"
_DECIMAL = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_WHOLE = re.compile(r"-?[0-9]+")
_SEVERAL = re.compile(r"\[?[0-9]+(?:\s*[,;|]\s*[0-9]+)+\]?")  # 1,3 or [1, 3]


def as_classes(values: Any, count: int, where: str) -> tuple[list[str], np.ndarray]:
    """The classes, sorted, and (N,) int64: the place of each image's class among them.

    Only values that occur are classes: the numbers 7 and 400000 are two.

    Args:
        values: (N,) whole numbers from 0, also of a float type, or booleans, or names; (N, 1) of
            them; or (N, C) one-hot rows.
        count: N, the number of images.
        where: what an error message begins with.
    Raises: UserError for decimals, several labels of an image, negative numbers, another length.
    """
    values = np.asarray(values)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 2 and values.shape[0] == count and values.dtype.kind in "biuf":
        ones = (values == 1).sum(1)
        if not (((values == 0) | (values == 1)).all() and (ones == 1).all()):
            raise UserError(
                f"{where}: labels have the shape {values.shape} and are not one-hot: an image has "
                f"several labels or scores, and no class{REMEDY}"
            )
        values = values.argmax(1)
    if values.shape != (count,) or not count:
        raise UserError(
            f"{where}: expected {count} labels, one for each image, found the shape "
            f"{values.shape}{REMEDY}"
        )
    try:
        values = _plain(values)
    except ValueError as error:
        raise UserError(f"{where}: {error}{REMEDY}") from None
    found, labels = np.unique(values, return_inverse=True)
    return [str(value) for value in found], labels.reshape(-1).astype(np.int64)


def align(source: Any, classes: list[str]) -> None:
    """Renumber a source's labels so that they are indices into `classes`, those of another split.

    Each split numbers its own classes: without this, a split that lacks a class would number all
    later classes differently.
    Raises: ValueError if the source has a class that is not in `classes`.
    """
    number = {name: n for n, name in enumerate(classes)}
    unknown = [name for name in source.classes if name not in number]
    if unknown:
        raise ValueError(f"class '{unknown[0]}' is not among the others")
    source.labels = np.array([number[name] for name in source.classes])[source.labels]
    source.classes = classes


def _plain(values: np.ndarray) -> np.ndarray:
    """Whole numbers from 0, or names. Raises: ValueError with the reason why they are neither."""
    if values.dtype.kind == "f":
        odd = values[~np.isfinite(values) | (np.trunc(values) != values)]
        if len(odd):
            raise ValueError(_no_class(odd[0]))
        values = values.astype(np.int64)
    if values.dtype.kind in "iu":
        if values.min() < 0:
            raise ValueError(f"label {values.min()} is below 0")
        return values
    if values.dtype.kind == "b":
        return np.where(values, "true", "false")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    parsed = {name: parse_label(name) for name in set(values.tolist())}
    if all(isinstance(value, int) for value in parsed.values()):
        return np.array([parsed[name] for name in values.tolist()], np.int64)
    if not all(isinstance(value, str) for value in parsed.values()):
        raise ValueError("some labels are numbers and others are names")
    return values.astype(str)


def parse_label(value: Any) -> int | str:
    """One label as a class number from 0 or a class name.

    Raises: ValueError with the reason if it is no class.
    """
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value)).lower()
    if isinstance(value, (float, np.floating)):
        if value % 1 != 0:  # also NaN and infinity
            raise ValueError(_no_class(value))
        value = int(value)
    if isinstance(value, str):
        if _SEVERAL.fullmatch(value):
            raise ValueError(f"label {value} is several numbers: an image has one class")
        if _DECIMAL.fullmatch(value):
            return parse_label(float(value))
        if not _WHOLE.fullmatch(value):
            return value
        value = int(value)
    if not isinstance(value, (int, np.integer)):
        raise ValueError(f"label {value!r} is neither a whole number nor a name")
    if not 0 <= value < 2**63:
        raise ValueError(f"label {value} is not from 0 to 2^63 - 1")
    return int(value)


def _no_class(value: Any) -> str:
    return f"label {value:g} is no whole number: the target of a regression is no class"


# Parts --------------------------------------------------------------------------------------------


def by_class(labels: np.ndarray, *coordinates: int) -> Iterator[np.ndarray]:
    """The rows of each class, in an order that follows from the coordinates."""
    counts = np.bincount(labels)
    short = labels.astype(np.uint16) if len(counts) <= 2**16 else labels  # sorted in linear time
    grouped = np.argsort(short, kind="stable")
    for rows in np.split(grouped, np.cumsum(counts)[:-1]):
        yield rows[np.argsort(randomness.hashes_at(rows, *coordinates))]


def hold_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A mask (N,) of a validation part: this share of each class, rounded, at least one image of a
    class that has two, never all of one."""
    held = np.zeros(len(labels), bool)
    for rows in by_class(labels, randomness.SPLIT, seed):
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        held[rows[: max(0, count)]] = True
    return held


def draw_part(labels: np.ndarray | None, images: int, count: int) -> np.ndarray:
    """(count,) rows, ascending, the same in every run; a smaller part lies in a larger one.

    Plainly drawn; but if that would leave a class without an image, and there are as many images
    as classes, each class gets a share as large as its share of all images, and at least one.
    """
    order = randomness.first_of(images, count, randomness.SUBSET)
    classes = 0 if labels is None else _occurring(labels)
    if labels is not None and _occurring(labels[order]) < classes <= count:
        rank = np.empty(images)  # the place of an image in its class, as a fraction of the class
        for rows in by_class(labels, randomness.SUBSET):
            rank[rows] = np.arange(len(rows)) / max(1, len(rows))
        order = randomness.permutation(images, randomness.SUBSET)
        order = order[np.argsort(rank[order], kind="stable")]
    return np.sort(order[:count])


def _occurring(labels: np.ndarray) -> int:
    """How many classes these labels are of."""
    return np.count_nonzero(np.bincount(labels))
