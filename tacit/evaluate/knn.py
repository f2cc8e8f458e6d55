"""Weighted k-nearest-neighbour classification (Wu et al., CVPR 2018, arXiv 1805.01978)."""

import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES, BANK = 1024, 65536  # of one chunk: at most 256 MiB of similarities at a time


@torch.no_grad()
def neighbours(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities and places of the k nearest bank rows, nearest first; bounded memory.

    Args:
        bank: (N, D) features, N >= k; queries: (M, D). Both are normalised here.
    Returns: (M, k) float32 and (M, k) int64.
    """
    found_similarity, found_place = [], []
    for q in queries.split(QUERIES):
        q = F.normalize(q.float(), dim=1)
        best = torch.empty(len(q), 0, device=q.device)
        place = torch.empty(len(q), 0, dtype=torch.long, device=q.device)
        for start in range(0, len(bank), BANK):
            part = F.normalize(bank[start : start + BANK].float(), dim=1)
            similarity, at = (q @ part.T).topk(min(k, len(part)), dim=1)
            best = torch.cat([best, similarity], 1)
            place = torch.cat([place, at + start], 1)
            best, keep = best.topk(min(k, best.shape[1]), dim=1)
            place = place.gather(1, keep)
        found_similarity.append(best)
        found_place.append(place)
    return torch.cat(found_similarity), torch.cat(found_place)


@torch.no_grad()
def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    ks: tuple[int, ...] = (20, 200),
    temperature: float = 0.07,
) -> dict[int, float]:
    """Top-1 accuracy for each k: the k nearest vote with weight exp(cosine / temperature).

    Args:
        bank: (N, D), bank_labels: (N,) int64; queries: (M, D), query_labels: (M,) int64.
    Returns: k -> accuracy in [0, 1]; a k above N counts as N.
    """
    classes = int(max(bank_labels.max(), query_labels.max())) + 1
    similarity, place = neighbours(bank, queries, min(max(ks), len(bank)))
    # Subtracting the largest similarity changes no vote's rank and keeps exp in range.
    weight = ((similarity - similarity[:, :1]) / temperature).exp()
    votes_for = bank_labels.to(place.device)[place]  # (M, k)
    truth = query_labels.to(place.device)
    accuracy = {}
    for k in ks:
        votes = torch.zeros(len(queries), classes, device=place.device)
        votes.scatter_add_(1, votes_for[:, :k], weight[:, :k])
        accuracy[k] = float((votes.argmax(1) == truth).float().mean())
    return accuracy
