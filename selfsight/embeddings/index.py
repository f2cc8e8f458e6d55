"""Features that are searched for those most similar to others, exactly or by an index of faiss.

Similarity is the cosine of two rows: features are divided by their length first, so it is 1 for the
same direction, 0 for directions that have nothing in common, and at least -1.
"""

import importlib
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from selfsight.errors import UserError
from selfsight.evaluate.features import Features, as_tensor
from selfsight.evaluate.knn import neighbours, unit_rows

Kind = Literal["exact", "faiss", "faiss-ivf", "faiss-hnsw"]
SAMPLE = 100  # rows that the recall of an approximate index is measured with
PROBES = 16  # cells that faiss-ivf reads for a query
LINKS = 32  # neighbours of a node in the graph of faiss-hnsw
WALK = 128  # nodes that it keeps while it looks for the nearest


class Index:
    """Features that are searched, normalised once.

    Args:
        features: (N, D) of finite numbers.
        kind: exact: matrix products of torch, also on a GPU. faiss: the same by faiss, on the CPU.
            faiss-ivf and faiss-hnsw: faster for millions of rows and many queries, but they miss
            some neighbours (see `recall`), and they take long to build.
        device: of the matrix products (default: where the features are).
    Raises: UserError for features that are not finite, an unknown kind, or if faiss is missing.

    >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    >>> similarity, rows = Index(features).search(torch.tensor([[2.0, 0.0]]), k=2)
    >>> rows
    tensor([[0, 2]])
    >>> similarity
    tensor([[1.0000, 0.6000]])
    """

    def __init__(
        self, features: Features, kind: Kind = "exact", device: torch.device | None = None
    ) -> None:
        if kind not in get_args(Kind):
            raise UserError(f"index={kind}: unknown; use one of {', '.join(get_args(Kind))}")
        self.kind = kind
        self._device = device if kind == "exact" else torch.device("cpu")
        self._unit = unit_features(features, self._device)
        self._faiss = None if kind == "exact" else _built(kind, self._unit)

    def __len__(self) -> int:
        return len(self._unit)

    def search(self, queries: Features, k: int) -> tuple[Tensor, Tensor]:
        """The k rows that are most like each query, equally similar ones by their number. Which
        of more than k equally similar rows are among them is not defined.

        Args:
            queries: (M, D); k: from 1 to N.
        Returns: similarity (M, k) float32, the greatest first, and rows (M, k) int64, on the CPU.
            An approximate index that finds fewer gives row -1 with similarity -inf.
        Raises: UserError for another width or another k.
        """
        queries = as_tensor(queries)
        check_k(k, len(self))
        width = self._unit.shape[1]
        if queries.ndim != 2 or queries.shape[1] != width:
            raise UserError(
                f"the queries have shape {tuple(queries.shape)}, but the table's features are "
                f"{width} numbers wide; both must come from the same encoder"
            )
        if self._faiss is None:
            found, rows = neighbours(self._unit, queries, k, self._unit.device, unit_bank=True)
            return _ordered(found.cpu(), rows.cpu())
        found, rows = self._faiss.search(unit_rows(queries, self._device).numpy(), k)
        rows = torch.from_numpy(rows)
        return _ordered(torch.from_numpy(found).masked_fill(rows < 0, -torch.inf), rows)

    def recall(self, k: int, sample: int = SAMPLE) -> float:
        """The share of the k nearest other rows that are found, measured: `sample` rows of the
        table, at equal distances, are searched here and exactly."""
        if self.kind in ("exact", "faiss") or len(self) < 2:
            return 1.0
        own = torch.arange(0, len(self), max(1, len(self) // sample))[:sample, None]
        queries, k = self._unit[own[:, 0]], min(k + 1, len(self))
        truth = neighbours(self._unit, queries, k, unit_bank=True)[1]
        found = (truth[:, :, None] == self.search(queries, k)[1][:, None]).any(2)
        return float(found[truth != own].float().mean())


def unit_features(features: Features, device: torch.device | None = None) -> Tensor:
    """`unit_rows` of a table's features. Raises: UserError if there are none, or for a row that is
    not finite."""
    if features.ndim != 2 or not len(features):
        raise UserError(f"features: must be (N, D) with N > 0, found {tuple(features.shape)}")
    unit = unit_rows(features, device)
    wrong = ~unit.sum(1).isfinite()
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise UserError(f"features: those of row {row} are not finite")
    return unit


def check_k(k: int, rows: int) -> None:
    """Raises: UserError unless 1 <= k <= rows."""
    if not 1 <= k <= rows:
        raise UserError(f"k={k}: the table has {rows:,} rows; use a k from 1 to {rows}")


def _ordered(similarity: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest first, and by number where similarities are equal."""
    rows, order = rows.sort(1)
    similarity, order = similarity.gather(1, order).sort(stable=True, dim=1, descending=True)
    return similarity, rows.gather(1, order)


def _built(kind: Kind, unit: Tensor) -> Any:
    """An index of faiss. Raises: UserError if faiss is not installed."""
    try:
        faiss = importlib.import_module("faiss")
    except ImportError:
        raise UserError(f"index={kind}: needs faiss: pip install 'selfsight[search]'") from None
    count, width = unit.shape
    cells = max(1, min(round(4 * count**0.5), count // 39))  # faiss asks for 39 rows a cell
    factory = {"faiss": "Flat", "faiss-ivf": f"IVF{cells},Flat", "faiss-hnsw": f"HNSW{LINKS},Flat"}
    index = faiss.index_factory(width, factory[kind], faiss.METRIC_INNER_PRODUCT)
    if kind == "faiss-ivf":
        index.nprobe = PROBES
        index.train(unit.numpy())
    if kind == "faiss-hnsw":
        index.hnsw.efSearch = WALK
    index.add(unit.numpy())
    return index
