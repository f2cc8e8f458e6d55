"""Losses that make a student's features those of a frozen teacher, or as similar to each other."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.losses.precision import full_precision


@full_precision
def feature_distance(p: Tensor, y: Tensor, smooth_l1: float) -> Tensor:
    """The mean over vectors of

        (1 - beta) * (1 - cos(p, y)) + beta * mean over features of the smooth L1 distance.

    Args:
        p, y: (..., D) predictions and targets; the caller stops the gradient of the targets.
        smooth_l1: beta, in [0, 1].
    Source: AM-RADIO, section 3.3 (arXiv 2312.06709): beta = 0.1 for patches, 0 for images.

    >>> feature_distance(torch.eye(2), 3 * torch.eye(2), smooth_l1=0.5)  # 0.5 * (1.5 + 0) / 2
    tensor(0.3750)
    """
    distance = 1 - F.cosine_similarity(p, y, dim=-1, eps=1e-12).mean()
    return (1 - smooth_l1) * distance + smooth_l1 * F.smooth_l1_loss(p, y)


@full_precision
def queue_similarity(
    p: Tensor, y: Tensor, queue: Tensor, temperature: float, teacher_temperature: float
) -> Tensor:
    """The cross-entropy of the similarities to the teacher's features of many images: with
    keys d = [y, queue], the mean over the batch of

        -sum over j of softmax(y . d / T_teacher)[j] * log softmax(p . d / T)[j].

    Args:
        p, y: (B, D) predictions and targets, which are normalised here.
        queue: (K, D) unit rows, targets of earlier images.
    Source: SEED, eq. 4 to 6 (arXiv 2101.04731).

    >>> p = y = torch.eye(2)[:1]
    >>> queue_similarity(p, y, torch.eye(2)[1:], 1.0, 1.0)  # two keys, with cosines 1 and 0
    tensor(0.5822)
    """
    p, y = F.normalize(p, dim=1), F.normalize(y, dim=1)
    queue = queue.to(p.dtype)

    def scores(z: Tensor) -> Tensor:
        return torch.cat([(z * y).sum(1, keepdim=True), z @ queue.T], dim=1)  # (B, 1 + K)

    targets = (scores(y) / teacher_temperature).softmax(1)
    return -(targets * (scores(p) / temperature).log_softmax(1)).sum(1).mean()


@full_precision
def gram_distance(x: Tensor, y: Tensor) -> Tensor:
    """The mean over images and pairs of their patches of the squared difference of cosines: with
    unit rows, the mean over all entries of (X X^T - Y Y^T)^2.

    Args:
        x, y: (B, N, D) and (B, N, E) features of the patches; the caller stops the gradient of y.
    Source: DINOv3, eq. 2 (arXiv 2508.10104), which has the sum over entries, its code the mean.

    >>> x = torch.eye(2)[None]
    >>> gram_distance(x, torch.ones(1, 2, 2))  # cosines 0 and 1 of the two pairs of two patches
    tensor(0.5000)
    """
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    return F.mse_loss(x @ x.mT, y @ y.mT)
