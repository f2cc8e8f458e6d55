"""Label subsets: a fraction of each class, a number of each class, or the images that a file lists.

Drawn by coordinates from the seed alone, so that every rank and every machine draws the same.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfsight import randomness
from selfsight.data.labels import by_class
from selfsight.data.source import Source
from selfsight.errors import UserError
from selfsight.files import Damaged, read_text


@dataclass(frozen=True)
class LabelSubset:
    """Rows of a training split.

    Attributes:
        rows: (n,) int64, ascending.
        sha256: of the rows.
    """

    rows: np.ndarray
    sha256: str


def draw(
    labels: np.ndarray,
    seed: int,
    fraction: float | None = None,
    shots: int | None = None,
    number: int = 0,
) -> LabelSubset:
    """A class-stratified subset; with one seed, a smaller subset is part of a larger one.

    Args:
        labels: (N,) int64.
        fraction: this share of each class, rounded, at least one image of it; or
        shots: this number of each class, or all of a smaller class; neither: all images.
        number: of several draws of the same seed.
    """
    if fraction is None and shots is None:
        return _subset(np.arange(len(labels)))
    taken = []
    for rows in by_class(labels, randomness.SUBSET, seed, number):
        taken.append(rows[: shots or max(1, round(fraction * len(rows)))])
    return _subset(np.concatenate(taken))


def listed(source: Source, file: str) -> LabelSubset:
    """The images that a file names, a line each: by name or by path, whole or its last parts.

    What follows the name, such as a label, is not read. This is the format of SimCLR's lists of 1 %
    and 10 % of ImageNet, and of a run's own subset.txt.
    Raises: UserError for a line that names no image, several, or one that was named before.
    """
    try:
        text = read_text(Path(file).expanduser(), errors="surrogateescape")
    except (OSError, Damaged) as error:
        reason = error.reason if isinstance(error, Damaged) else error.strerror
        raise UserError(f"images={file}: cannot be read: {reason}") from None
    named = {source.name(i): i for i in range(len(source))}
    by_end: dict[str, list[int]] = {}
    for name, i in named.items():
        by_end.setdefault(_last(name), []).append(i)
    rows: dict[int, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line:
            continue
        i = named.get(line)
        if i is None:
            i = _find(line, named, by_end, source, f"images={file} line {number}")
        if i in rows:
            raise UserError(f"images={file} line {number}: names the image of line {rows[i]} again")
        rows[i] = number
    if not rows:
        raise UserError(f"images={file}: names no image")
    return _subset(np.fromiter(rows, np.int64))


def _find(
    line: str, named: dict[str, int], by_end: dict[str, list[int]], source: Source, where: str
) -> int:
    """The one image whose path ends as the line says, which may have words after it."""
    for wanted in dict.fromkeys((line, line.split()[0])):
        if wanted in named:
            return named[wanted]
        ends = "/" + wanted.removeprefix("./")
        fits = [
            i
            for i in by_end.get(_last(wanted), [])
            if ("/" + source.name(i).replace("\\", "/")).endswith(ends)
        ]
        if len(fits) == 1:
            return fits[0]
        if fits:
            raise UserError(
                f"{where}: '{wanted}' fits {len(fits)} images, among them {source.name(fits[0])}; "
                f"give more of its path"
            )
    raise UserError(f"{where}: '{line}' is no image of the training split")


def _last(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _subset(rows: np.ndarray) -> LabelSubset:
    rows = np.sort(rows).astype(np.int64)
    return LabelSubset(rows, hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest())
