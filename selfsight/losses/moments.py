"""Losses on the statistics of a batch, over all ranks: correlation, covariance, distribution."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight import distributed
from selfsight.losses.precision import full_precision


def _rows(z: Tensor) -> int:
    """The number of rows of all ranks."""
    return len(z) * distributed.world_size()


def _centred(z: Tensor) -> Tensor:
    return z - distributed.all_sum(z.sum(0)) / _rows(z)


def _energy(a: Tensor, b: Tensor) -> Tensor:
    """The sum of squares of the (D, D) matrix A^T B over the rows of all ranks.

    It equals the sum of the elementwise product of A A^T and B B^T, which is faster for few rows.
    """
    if 2 * _rows(a) < a.shape[1]:
        gram_a = a @ distributed.gather(a).T
        gram_b = gram_a if b is a else b @ distributed.gather(b).T
        return distributed.all_sum((gram_a * gram_b).sum())
    return torch.linalg.vector_norm(distributed.all_sum(a.T @ b)).square()


@full_precision
def barlow_twins(z1: Tensor, z2: Tensor, off_diagonal_weight: float) -> Tensor:
    """The distance of the cross-correlation c of the views' features from the identity:

        sum over i of (1 - c_ii)^2  +  weight * sum over i != j of c_ij^2.

    Args:
        z1, z2: (B, D) embeddings; each feature is standardised over the batch (biased variance,
            epsilon 1e-5).
        off_diagonal_weight: lambda in eq. 1.
    Source: Barlow Twins, eq. 1 (arXiv 2103.03230).

    >>> z = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])  # features that do not correlate
    >>> barlow_twins(z, z, 0.005).item() < 1e-6
    True
    """
    n = _rows(z1)
    z1, z2 = (
        x * torch.rsqrt(distributed.all_sum(x.square().sum(0)) / n + 1e-5)
        for x in (_centred(z1), _centred(z2))
    )
    diagonal = distributed.all_sum((z1 * z2).sum(0)) / n  # (D,)
    off = _energy(z1, z2) / n**2 - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal_weight * off


@full_precision
def vicreg(z1: Tensor, z2: Tensor, invariance: float, variance: float, covariance: float) -> Tensor:
    """Variance, invariance, covariance: the weighted sum of

        invariance: the mean squared difference of z1 and z2,
        variance: the mean over features and views of max(0, 1 - sqrt(var + 1e-4)),
        covariance: for each view the sum of squared off-diagonal covariances / D.

    Args:
        z1, z2: (B, D) embeddings; variance and covariance are unbiased.
        invariance, variance, covariance: the weights (lambda, mu, nu in eq. 6).
    Source: VICReg, eq. 1 to 6 (arXiv 2105.04906). As in its code, the hinge is halved, and the
    invariance is a mean over features too.

    >>> z = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    >>> vicreg(z, z + 1, invariance=25.0, variance=0.0, covariance=0.0)  # mean of 1 squared
    tensor(25.)
    """
    loss = invariance * F.mse_loss(z1, z2)
    n, d = _rows(z1), z1.shape[1]
    for z in (z1, z2):
        x = _centred(z)
        var = distributed.all_sum(x.square().sum(0)) / (n - 1)  # (D,)
        hinge = F.relu(1 - (var + 1e-4).sqrt()).mean() / 2
        off = (_energy(x, x) / (n - 1) ** 2 - var.square().sum()) / d
        loss = loss + variance * hinge + covariance * off
    return loss


@full_precision
def koleo(z: Tensor) -> Tensor:
    """Kozachenko and Leonenko's estimator of the entropy, negated: the mean over rows of

        -log(distance to the nearest other row + 1e-8),

    with rows of unit length, and neighbours among the rows of all ranks. It spreads them evenly.

    Args:
        z: (B, D) features.
    Source: DINOv2, section 4 (arXiv 2304.07193); 1806.03198. In DINOv2's code a neighbour is of the
        same rank; here it may be of any, so that ranks are one rank.

    >>> bool(koleo(torch.eye(4)) < koleo(torch.eye(4) + 0.5))
    True
    """
    z = F.normalize(z, dim=1, eps=1e-8)
    every, own = distributed.gather(z), torch.arange(len(z), device=z.device)
    with torch.no_grad():
        cosine = z @ every.T  # (B, all rows)
        cosine[own, own + distributed.rank() * len(z)] = -2.0
        nearest = cosine.argmax(1)
    return -(F.pairwise_distance(z, every[nearest], eps=1e-8) + 1e-8).log().mean()


@full_precision
def sigreg(z: Tensor, directions: Tensor, knots: int = 17, t_max: float = 5.0) -> Tensor:
    """The distance of z from an isotropic Gaussian: the mean over directions a of Epps and Pulley's
    statistic of z.a,

        N * integral over t in [-t_max, t_max] of |mean over n of exp(i t z_n.a) - exp(-t^2 / 2)|^2
        * exp(-t^2 / 2) dt

    by the trapezoidal rule; the integrand is even, so only t >= 0 is computed.

    Args:
        z: (B, D) embeddings of one view.
        directions: (D, S) unit columns, the same on all ranks.
        knots: points on [-t_max, t_max], odd.
    Source: LeJEPA, algorithm 1 (arXiv 2511.08544).

    >>> directions = torch.nn.functional.normalize(torch.randn(8, 16), dim=0)
    >>> bool(sigreg(torch.randn(500, 8), directions) < sigreg(torch.zeros(500, 8), directions))
    True
    """
    n = _rows(z)
    t = torch.linspace(0, t_max, (knots + 1) // 2, device=z.device, dtype=z.dtype)  # (T,)
    angle = (z @ directions.to(z.dtype))[..., None] * t  # (B, S, T)
    parts = torch.stack([angle.cos().sum(0), angle.sin().sum(0)])
    real, imaginary = distributed.all_sum(parts) / n  # each (S, T)
    gauss = (-t.square() / 2).exp()
    integrand = ((real - gauss).square() + imaginary.square()) * gauss
    return 2 * n * torch.trapezoid(integrand, t, dim=1).mean()
