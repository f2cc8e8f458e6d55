"""Images that are almost equal: groups of rows whose features have a cosine above a threshold.

Rows that are similar are linked, and a group is what links join. A group may be a chain: A is like
B and B is like C, though A is not like C. `Group.lowest` tells: it is the smallest similarity of
any two of its images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from selfsight.data.source import TRAIN_NAMES, Watch
from selfsight.embeddings.index import unit_features
from selfsight.errors import UserError
from selfsight.evaluate.features import Features, exact_products

BLOCK = 2048  # rows that are compared with as many others at a time: 16 MiB of similarities
MOST_LINKS = 2**22  # that are kept before they are joined to groups: 64 MiB
ROUNDING = 1e-6  # of a cosine of float32 features: two equal rows may have 1 - 1e-7


@dataclass(frozen=True)
class Group:
    """Images that are almost equal.

    Attributes:
        rows: of the table, two or more, ascending.
        lowest: the smallest similarity of any two of them.
        leaks: those of the rows that are linked to an image of another split.
        mixed: they have different labels.
    """

    rows: np.ndarray
    lowest: float
    leaks: np.ndarray
    mixed: bool = False

    def __len__(self) -> int:
        return len(self.rows)


def near_duplicates(
    features: Features,
    threshold: float,
    splits: Sequence[str] | None = None,
    labels: Sequence[str | None] | None = None,
    device: torch.device | None = None,
    watch: Watch | None = None,
) -> list[Group]:
    """All groups of rows that links of at least `threshold` join: those with leaks from one split
    to another first, then the largest.

    Every pair is compared, which is N^2 D multiplications: minutes for a hundred thousand rows of
    width 384 on a CPU, hours for a million. Beyond the features and a normalised copy of them this
    needs memory for N numbers and two constants, however many pairs are similar.

    Args:
        features: (N, D) of finite numbers.
        threshold: of the cosine, above -1 and at most 1.
        splits, labels: of each row.
        device: of the matrix products (default: where the features are).
        watch: is called with the task, and how many of how many pairs of blocks are compared.
    Raises: UserError for another threshold or features that are not finite.

    >>> groups = near_duplicates(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.01]]), 0.96)
    >>> [group.rows.tolist() for group in groups]
    [[0, 2]]
    """
    check_threshold(threshold)
    unit = unit_features(features, device)
    number, leaks = _joined(unit, threshold - ROUNDING, splits, watch)
    groups = [
        Group(rows, _lowest(unit[rows]), rows[leaks[rows]], _differ(labels, rows))
        for rows in _members(number)
    ]
    return sorted(groups, key=lambda g: (not len(g.leaks), -len(g), -g.lowest, int(g.rows[0])))


def check_threshold(threshold: float) -> None:
    """Raises: UserError unless -1 < threshold <= 1."""
    if not -1 < threshold <= 1:  # also nan
        raise UserError(
            f"threshold={threshold:g}: a cosine is above -1 and at most 1; near-duplicates of most "
            f"encoders have 0.9 to 0.99"
        )


def _differ(values: Sequence[str | None] | None, rows: np.ndarray) -> bool:
    """Whether the rows have several values; None is not known, so it differs from none."""
    return values is not None and len({values[row] for row in rows.tolist()} - {None}) > 1


def _joined(
    unit: Tensor, least: float, splits: Sequence[str] | None, watch: Watch | None
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the number of the group of each row, of a row that is like no other its own; and (N,)
    bool: whether it is linked to a row of another split."""
    links, leaks = _Links(len(unit)), np.zeros(len(unit), bool)
    split = np.unique(splits or [""] * len(unit), return_inverse=True)[1]
    starts = range(0, len(unit), BLOCK)
    total = len(starts) * (len(starts) + 1) // 2
    with exact_products():
        for done, (first, second) in enumerate(_pairs(starts), 1):
            similarity = unit[first : first + BLOCK] @ unit[second : second + BLOCK].T
            similar = similarity >= least
            if first == second:
                similar = similar.triu(1)  # each pair once, no row with itself
            a, b = (side.cpu().numpy() for side in similar.nonzero(as_tuple=True))
            a, b = a + first, b + second
            links.add(a, b)
            other = split[a] != split[b]
            leaks[a[other]] = leaks[b[other]] = True
            if watch and total > 1:
                watch("comparing blocks", done, total)
    return links.groups(), leaks


def _pairs(starts: range) -> Iterator[tuple[int, int]]:
    for n, first in enumerate(starts):
        for second in starts[n:]:
            yield first, second


class _Links:
    """Pairs of rows that are joined to groups, in memory that does not grow with their number."""

    def __init__(self, rows: int) -> None:
        self._number = np.arange(rows)
        self._new: list[tuple[np.ndarray, np.ndarray]] = []
        self._count = 0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        needed = self._number[a] != self._number[b]  # the others join nothing
        self._new.append((a[needed], b[needed]))
        self._count += int(needed.sum())
        if self._count > MOST_LINKS:
            self.groups()

    def groups(self) -> np.ndarray:
        """(N,) the number of the group of each row."""
        if self._count:
            a, b = (self._number[np.concatenate(side)] for side in zip(*self._new, strict=True))
            size = int(self._number.max()) + 1
            graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(size, size))
            self._number = connected_components(graph, directed=False)[1][self._number]
        self._new, self._count = [], 0
        return self._number


def _members(number: np.ndarray) -> list[np.ndarray]:
    """The rows of each group of two or more."""
    order = number.argsort(kind="stable")
    cuts = np.flatnonzero(np.diff(number[order])) + 1
    return [rows for rows in np.split(order, cuts) if len(rows) > 1]


def _lowest(unit: Tensor) -> float:
    """The smallest cosine of two of the rows."""
    lowest = 1.0
    with exact_products():
        for first, second in _pairs(range(0, len(unit), BLOCK)):
            part = unit[first : first + BLOCK] @ unit[second : second + BLOCK].T
            lowest = min(lowest, float(part.min()))  # of a row with itself it is about 1
    return lowest


def kept(groups: list[Group], rows: int, splits: Sequence[str] | None) -> np.ndarray:
    """The training rows without near-duplicates, ascending: none that is linked to an image of
    another split, since that one would be trained and tested on; and of what is left of each group
    the first.

    Args:
        rows: of the table.
    Raises: as `training_rows`.
    """
    train = training_rows(rows, splits)
    keep = train.copy()
    for group in groups:
        keep[group.rows] = False
        left = np.setdiff1d(group.rows[train[group.rows]], group.leaks)
        keep[left[:1]] = True
    return np.flatnonzero(keep)


def training_rows(rows: int, splits: Sequence[str] | None) -> np.ndarray:
    """(N,) bool: the rows of the training split; all of them where there is one split.

    Raises: UserError if none of several splits is called train.
    """
    names = set(splits or [])
    if len(names) < 2:
        return np.ones(rows, bool)
    known = names.intersection(TRAIN_NAMES)
    if len(known) != 1:
        raise UserError(
            f"the splits are {', '.join(sorted(names))}: which one is for training is not known; "
            f"name it {TRAIN_NAMES[0]}"
        )
    (name,) = known
    return np.array([split == name for split in splits or []])
