"""Measures of predictions, features and embeddings, as pure functions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def top_k(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """The fraction of rows whose label is among the k highest scores (among all C if k > C).

    Args:
        scores: (N, C).
        labels: (N,) int64.
    Returns: a scalar in [0, 1] on the device of the scores.
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices  # (N, k)
    return (best == labels[:, None]).any(1).float().mean()


def feature_std(features: Tensor) -> Tensor:
    """sqrt(D) * the mean over features of the standard deviation of normalised rows.

    0: all rows are equal (collapse); about 1: rows are spread over the sphere.

    Args:
        features: (B, D).
    Source: SimSiam, section 4.1 (arXiv 2011.10566): spread rows have the deviation 1 / sqrt(D).
    """
    unit = F.normalize(features.detach().float(), dim=1)
    return unit.std(0).mean() * features.shape[1] ** 0.5


def rank_me(features: Tensor) -> Tensor:
    """The effective rank: exp of the entropy of the singular values, in [1, min(B, D)].

    Args:
        features: (B, D).
    Source: RankMe, eq. 1 (arXiv 2210.02885).
    """
    x = features.detach().double()
    gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
    if not gram.isfinite().all():
        return gram.new_tensor(torch.nan)
    # Its eigenvalues are the squared singular values; on the CPU, which is faster for small ones.
    values = torch.linalg.eigvalsh(gram.cpu()).clamp_min(0).sqrt()
    p = values / values.sum().clamp_min(1e-12) + 1e-7
    return (-(p * p.log()).sum()).exp()


def alignment(a: Tensor, b: Tensor) -> Tensor:
    """The mean squared distance of two views' normalised embeddings: 0 equal, 2 unrelated.

    Args:
        a, b: (B, E).
    Source: Wang and Isola, eq. 3 with alpha 2 (arXiv 2005.10242).
    """
    a, b = (F.normalize(x.detach().float(), dim=1) for x in (a, b))
    return (a - b).square().sum(1).mean()


def uniformity(features: Tensor, t: float = 2.0) -> Tensor:
    """log of the mean Gaussian potential of pairs of normalised embeddings.

    0: all embeddings are equal; -4 (t = 2): the best value, for embeddings spread over the sphere.

        log( mean over i < j of exp(-t |x_i - x_j|^2) )

    Args:
        features: (B, E), B >= 2.
    Source: Wang and Isola, eq. 4 (arXiv 2005.10242).
    """
    unit = F.normalize(features.detach().float(), dim=1)
    return torch.pdist(unit).square().mul(-t).exp().mean().log()
