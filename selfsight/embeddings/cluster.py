"""Clusters of images: k-means or HDBSCAN (both of scikit-learn) on features of length 1.

Of rows of length 1 the squared Euclidean distance is 2 - 2 cosine, so both measure by cosine.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from selfsight.embeddings.index import check_k, unit_features
from selfsight.errors import UserError
from selfsight.evaluate.features import Features
from selfsight.logging.log import say

WHOLE = 20_000  # rows up to which k-means reads all of them in each iteration
BATCH = 4096  # rows that it reads in one of more
TRIES = 4  # starts of k-means, of which the best is kept
CLUSTERS = 20  # of k-means by default
MANY = 20_000  # rows from which HDBSCAN takes many minutes
NOISE = -1  # the number of what HDBSCAN leaves without a cluster


@dataclass(frozen=True)
class Cluster:
    """One cluster.

    Attributes:
        number: from 0, the largest first; NOISE of the rows that HDBSCAN gives none.
        rows: of the table, those first that are most like the centre.
        similarities: their cosines with the centre, the mean of the rows of length 1.
        label: the most frequent label, and purity: its share of the rows that have one; or None.
    """

    number: int
    rows: np.ndarray
    similarities: np.ndarray
    label: str | None = None
    purity: float | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Clustering:
    """All clusters, and how well they agree with labels if there are labels.

    Attributes:
        clusters: the largest first; noise last.
        numbers: (N,) the cluster of each row.
        purity: the share of labelled rows whose label is the most frequent one of their cluster.
        nmi: mutual information, divided by the mean of both entropies: 0 to 1.
        ari: adjusted Rand index: 0 for chance, 1 for equal partitions.
    """

    clusters: list[Cluster]
    numbers: np.ndarray
    purity: float | None = None
    nmi: float | None = None
    ari: float | None = None


def kmeans(features: Features, k: int, seed: int = 0) -> np.ndarray:
    """(N,) the number of one of k clusters for each row. Up to 20,000 rows all of them are used in
    each iteration, of more a sample (scikit-learn's MiniBatchKMeans).

    The same seed gives the same clusters, with any number of threads. Fewer than k different rows
    give fewer clusters.
    Args:
        features: (N, D), normalised here.
        k: from 1 to N.
    Raises: UserError for another k.

    >>> numbers = kmeans(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), k=2)
    >>> bool(numbers[0] == numbers[1] != numbers[2])
    True
    """
    unit = unit_features(features).cpu().numpy()
    check_k(k, len(unit))
    from sklearn.cluster import KMeans, MiniBatchKMeans  # takes a second
    from sklearn.exceptions import ConvergenceWarning

    more = {"n_clusters": k, "n_init": TRIES, "random_state": seed}
    model = KMeans(**more)
    if len(unit) > WHOLE:
        model = MiniBatchKMeans(batch_size=BATCH, **more)
    # Threads would add up sums in the order in which they finish.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer than k different rows
        return model.fit_predict(unit).astype(np.int64)


def hdbscan(features: Features, smallest: int) -> np.ndarray:
    """(N,) the number of a cluster of at least `smallest` rows for each row, or NOISE. No random
    number is used.

    It compares all rows: minutes for 20,000 of width 384, and time grows with the square.
    Args:
        features: (N, D), normalised here.
        smallest: from 2 to N.
    Raises: UserError for another number.

    >>> hdbscan(torch.eye(2).repeat(5, 1), smallest=4).tolist()
    [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    """
    unit = unit_features(features).cpu().numpy()
    if not 2 <= smallest <= len(unit):
        raise UserError(
            f"hdbscan={smallest}: the size of the smallest cluster is from 2 to the number of "
            f"rows, {len(unit)}"
        )
    from sklearn.cluster import HDBSCAN

    with threadpool_limits(1):
        return HDBSCAN(min_cluster_size=smallest, copy=True).fit_predict(unit).astype(np.int64)


def clustered(
    features: Features,
    k: int | None = None,
    smallest: int | None = None,
    seed: int = 0,
    labels: Sequence[str | None] | None = None,
) -> tuple[Clustering, dict[str, Any]]:
    """The clusters by k-means (k, 20 by default) or HDBSCAN (smallest), and how they were made.

    Raises: UserError if both are given, or for a number that does not fit.
    """
    if k is not None and smallest is not None:
        raise UserError(f"k={k} and hdbscan={smallest}: choose one of them")
    if smallest is not None:
        made: dict[str, Any] = {"method": "hdbscan", "smallest": smallest}
        if len(features) > MANY:
            say(f"HDBSCAN compares all {len(features):,} rows: this may take hours; -k is faster")
        numbers = hdbscan(features, smallest)
    else:
        made = {"method": "k-means", "k": CLUSTERS if k is None else k, "seed": seed}
        numbers = kmeans(features, made["k"], seed)
    found = described(features, numbers, labels)
    if len(found.clusters) < made.get("k", 0):
        count = len(found.clusters)
        say(f"Only {count} cluster{'s'[: count != 1]}: the table has no more different rows")
    return found, made


def described(
    features: Features, numbers: np.ndarray, labels: Sequence[str | None] | None = None
) -> Clustering:
    """Clusters by size, their rows by likeness to the centre, and their agreement with labels.

    Args:
        features: (N, D), normalised here.
        numbers: (N,) from `kmeans` or `hdbscan`; clusters are numbered anew, the largest first.
        labels: of each row; rows whose label is None do not count.
    """
    unit = unit_features(features).cpu().numpy()
    sizes = Counter(numbers.tolist())
    first = {number: int((numbers == number).argmax()) for number in sizes}
    order = sorted(sizes, key=lambda n: (n == NOISE, -sizes[n], first[n]))
    names = {old: NOISE if old == NOISE else new for new, old in enumerate(order)}
    clusters = [_cluster(names[old], np.flatnonzero(numbers == old), unit, labels) for old in order]
    renamed = np.array([names[old] for old in numbers.tolist()])
    return Clustering(clusters, renamed, *_agreement(renamed, labels))


def _cluster(
    number: int, rows: np.ndarray, unit: np.ndarray, labels: Sequence[str | None] | None
) -> Cluster:
    centre = unit[rows].mean(0, dtype=np.float64)
    length = float(np.linalg.norm(centre))
    similarities = (unit[rows] @ (centre / length if length else centre)).astype(np.float32)
    order = np.lexsort((rows, -similarities))
    counts = Counter(labels[row] for row in rows.tolist()) if labels is not None else Counter()
    counts.pop(None, None)
    label = purity = None
    if counts:
        label, most = min(counts.items(), key=lambda item: (-item[1], item[0]))
        purity = most / counts.total()
    return Cluster(number, rows[order], similarities[order], label, purity)


def _agreement(
    numbers: np.ndarray, labels: Sequence[str | None] | None
) -> tuple[float | None, float | None, float | None]:
    """Purity, NMI and ARI over the rows with labels; noise is a cluster of its own."""
    known = [row for row, label in enumerate(labels or []) if label is not None]
    if labels is None or not known:
        return None, None, None
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    truth, found = [labels[row] for row in known], numbers[known].tolist()
    pairs = Counter(zip(found, truth, strict=True))
    most: Counter[int] = Counter()
    for (number, _), count in pairs.items():
        most[number] = max(most[number], count)
    nmi, ari = normalized_mutual_info_score(truth, found), adjusted_rand_score(truth, found)
    return most.total() / len(known), float(nmi), float(ari)
