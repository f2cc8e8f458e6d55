"""What a table says of its rows beyond the features: places on a plane, and neighbours."""

import numpy as np
import torch

from selfsight.embeddings.table import Neighbours
from selfsight.errors import UserError
from selfsight.evaluate.features import as_tensor
from selfsight.evaluate.knn import neighbours, unit_rows

PROJECTIONS = ("tsne", "pca")
MOST = 30_000  # rows: t-SNE, in one thread so that equal rows give equal places, takes minutes
KEPT = 50  # principal components that t-SNE is given
PERPLEXITY = 30
EQUAL = 1e-7  # features of length 1 that differ by less in each dimension differ by rounding


def check_neighbours(k: int, rows: int) -> None:
    """Raises: UserError if rows have no k neighbours."""
    if not 1 <= k <= rows - 1:
        raise UserError(
            f"--neighbors {k}: there are {rows:,} images, so each has {rows - 1:,} others; choose "
            f"1 to {max(1, rows - 1):,}"
        )


def check_projection(method: str, rows: int) -> None:
    """Raises: UserError for a method that is not known, or for a number of rows that it does not
    take."""
    if method not in PROJECTIONS:
        raise UserError(f"--projection {method}: must be {' or '.join(PROJECTIONS)}")
    if rows < 3:
        raise UserError(f"--projection {method}: needs 3 images, and there are {rows}")
    if method == "tsne" and rows > MOST:
        raise UserError(
            f"--projection tsne: takes at most {MOST:,} images, and there are {rows:,}; choose "
            f"--projection pca, fewer images (--split, data.limit=), or leave it out"
        )


def nearest(features: np.ndarray, k: int, device: torch.device | None = None) -> Neighbours:
    """The k nearest other rows of each, by cosine, exactly.

    Args:
        features: (N, D); k: at most N - 1; device: does the arithmetic (default: the CPU).

    >>> nearest(np.array([[1, 0], [0, 1], [1, 0.1]], np.float32), 1).ids.ravel().tolist()
    [2, 2, 0]
    """
    check_neighbours(k, len(features))
    rows = as_tensor(features)
    similarity, place = (found.cpu() for found in neighbours(rows, rows, k + 1, device))
    other = place != torch.arange(len(rows))[:, None]
    # Of many equal rows a row itself may not be among the first: then the last is left out.
    other[:, -1] &= ~other.all(1)
    ids = place[other].view(-1, k).numpy()
    distances = (1 - similarity[other].view(-1, k)).clamp(0, 2)
    return Neighbours(ids, distances.numpy())


def project(features: np.ndarray, method: str, seed: int) -> np.ndarray:
    """(N, 2) float32 places of rows scaled to length 1; all 0 if all rows are equal.

    Args:
        features: (N, D); method: pca, or tsne: t-SNE (van der Maaten and Hinton, JMLR 2008) of the
            first 50 principal components, which starts from the first two.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    check_projection(method, len(features))
    # One thread: sums of several are in no fixed order, and equal tables must be equal bytes.
    with threadpool_limits(1):
        unit = unit_rows(features).numpy()
        if np.ptp(unit, axis=0).max() < EQUAL:  # of a collapsed encoder: nothing to divide by
            return np.zeros((len(unit), 2), np.float32)
        components = min(KEPT if method == "tsne" else 2, *unit.shape)
        x = PCA(components, svd_solver="covariance_eigh").fit_transform(unit)
        plane = np.pad(x[:, :2], ((0, 0), (0, max(0, 2 - components))))
        if method == "tsne":
            spread = float(plane[:, 0].std()) or 1.0
            perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
            how = {"perplexity": perplexity, "random_state": seed % 2**32, "n_jobs": 1}
            start = (plane / spread * 1e-4).astype(np.float32)  # as scikit-learn scales its own
            plane = TSNE(2, init=start, **how).fit_transform(x)
    return plane.astype(np.float32)
