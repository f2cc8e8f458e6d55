"""Weighted k-nearest-neighbour classification (Wu et al., CVPR 2018, arXiv 1805.01978)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.evaluate.features import Features, as_tensor, exact_products

QUERIES, BANK = 1024, 16384  # rows of one chunk: 64 MiB of similarities at a time
LONGEST, SHORTEST = 1e18, 1e-12  # rows beyond these are scaled before their length is measured


@torch.no_grad()
def neighbours(
    bank: Features,
    queries: Features,
    k: int,
    device: torch.device | None = None,
    unit_bank: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cosine similarities and places of the k nearest bank rows, nearest first.

    Every row of the bank is read and normalised once, a chunk at a time, so it may be float16,
    mapped from a file and larger than memory. Beyond the features this holds 12 M k bytes of
    results, 200 KiB for each dimension and 200 MiB: 0.7 GiB at M = 50,000, k = 200, D = 2048.

    Args:
        bank: (N, D) features, N >= k; queries: (M, D). Both are normalised here.
        device: does the arithmetic and gets the result (default: where the queries are).
        unit_bank: the rows of the bank are float32 of length 1 already (see `unit_rows`): a bank
            that is searched often is then normalised once.
    Returns: (M, k) float32 and (M, k) int64.
    """
    bank, queries = as_tensor(bank), as_tensor(queries)
    device = queries.device if device is None else device
    best = torch.full((len(queries), k), -torch.inf, device=device)
    place = torch.zeros(len(queries), k, dtype=torch.long, device=device)
    with exact_products():
        for start in range(0, len(bank), BANK):
            part = bank[start : start + BANK]
            part = part.to(device) if unit_bank else _unit(part, device)
            for first in range(0, len(queries), QUERIES):
                at = slice(first, first + QUERIES)
                similarity = _unit(queries[at], device) @ part.T  # (q, b)
                found, where = similarity.topk(min(k, len(part)), dim=1)
                both = torch.cat([best[at], found], 1)
                best[at], keep = both.topk(k, dim=1)
                place[at] = torch.cat([place[at], where + start], 1).gather(1, keep)
    return best, place


def unit_rows(x: Features, device: torch.device | None = None) -> Tensor:
    """A copy of the rows with length 1, float32; a row of zeros stays as it is.

    Args:
        x: (N, D); read a chunk at a time, so it may be a map of a file.
        device: of the copy (default: where x is).
    """
    x = as_tensor(x)
    device = x.device if device is None else device
    unit = torch.empty(x.shape, device=device)
    for start in range(0, len(x), BANK):
        unit[start : start + BANK] = _unit(x[start : start + BANK], device)
    return unit


def _unit(x: Tensor, device: torch.device) -> Tensor:
    x = x.to(device).float()
    length = x.norm(dim=1)
    unit = F.normalize(x, dim=1)
    # Their squares leave the range of float32, so that the length found is not theirs.
    odd = (length > LONGEST) | (length < SHORTEST)
    if odd.any():
        largest = x[odd].abs().amax(1, keepdim=True)
        unit[odd] = F.normalize(x[odd] / largest.clamp_min(torch.finfo().tiny), dim=1)
    return unit


def knn_accuracy(
    bank: Features,
    bank_labels: Tensor,
    queries: Features,
    query_labels: Tensor,
    ks: tuple[int, ...] = (20, 200),
    temperature: float = 0.07,
    device: torch.device | None = None,
) -> dict[int, float]:
    """k -> top-1 accuracy in [0, 1]; arguments as of `knn_right`."""
    right = knn_right(bank, bank_labels, queries, query_labels, ks, temperature, device)
    return {k: int(hits.sum()) / len(hits) for k, hits in right.items()}


@torch.no_grad()
def knn_right(
    bank: Features,
    bank_labels: Tensor,
    queries: Features,
    query_labels: Tensor,
    ks: tuple[int, ...] = (20, 200),
    temperature: float = 0.07,
    device: torch.device | None = None,
) -> dict[int, Tensor]:
    """For each k which queries get their class: the k nearest vote with weight
    exp(cosine / temperature).

    Args:
        bank: (N, D), bank_labels: (N,) int64; queries: (M, D), query_labels: (M,) int64.
        device: as for `neighbours`.
    Returns: k -> (M,) bool on the CPU; a k above N counts as N.
    """
    similarity, place = neighbours(bank, queries, min(max(ks), len(bank)), device)
    found = vote(similarity, place, bank_labels, ks, temperature)
    return {k: predicted == query_labels.cpu() for k, predicted in found.items()}


@torch.no_grad()
def vote(
    similarity: Tensor,
    place: Tensor,
    bank_labels: Tensor,
    ks: tuple[int, ...] = (20, 200),
    temperature: float = 0.07,
) -> dict[int, Tensor]:
    """For each k the class that the k nearest vote for; arguments as of `knn_right`.

    Args:
        similarity, place: (M, n) each, from `neighbours`, nearest first.
    Returns: k -> (M,) int64 on the CPU; a k above n counts as n.
    """
    bank_labels = bank_labels.to(place.device)
    classes = int(bank_labels.max()) + 1
    found = {k: torch.zeros(len(place), dtype=torch.long) for k in ks}
    for first in range(0, len(place), QUERIES):
        at = slice(first, first + QUERIES)
        # Subtracting the largest similarity changes no vote's rank and keeps exp in range.
        weight = ((similarity[at] - similarity[at, :1]) / temperature).exp()
        votes_for = bank_labels[place[at]]  # (q, n)
        for k in ks:
            votes = torch.zeros(len(weight), classes, device=place.device)
            votes.scatter_add_(1, votes_for[:, :k], weight[:, :k])
            found[k][at] = votes.argmax(1).cpu()
    return found
