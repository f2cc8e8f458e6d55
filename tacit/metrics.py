"""Small pure measures of predictions and features."""

import torch
from torch import Tensor


def top_k(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """The fraction of rows whose label is among the k highest scores (all, where k > C).

    Args:
        scores: (N, C).
        labels: (N,) int64.
    Returns: a scalar in [0, 1] on the device of the scores.
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices  # (N, k)
    return (best == labels[:, None]).any(1).float().mean()


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """The mean cosine of corresponding rows, a scalar in [-1, 1] without gradient.

    Args:
        a, b: (B, D); for two views of the same images it tells how invariant embeddings are.
    """
    return torch.nn.functional.cosine_similarity(a.detach().float(), b.detach().float()).mean()


def feature_std(features: Tensor) -> Tensor:
    """sqrt(D) times the mean standard deviation of unit features: 0 collapsed, about 1 spread.

    Args:
        features: (B, D).
    Source: SimSiam, section 4.1 (arXiv 2011.10566): a spread output has 1 / sqrt(D).
    """
    unit = torch.nn.functional.normalize(features.detach().float(), dim=1)
    return unit.std(0).mean() * features.shape[1] ** 0.5
