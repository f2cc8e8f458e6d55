"""Losses on masked patches: their pixels, features or prototypes."""

import torch.nn.functional as F
from torch import Tensor

from selfsight.losses.precision import full_precision


@full_precision
def mae(prediction: Tensor, target: Tensor, mask: Tensor, norm_pix: bool) -> Tensor:
    """The mean squared error per pixel, over masked patches.

    Args:
        prediction, target: (B, N, P) pixels of the patches.
        mask: (B, N) bool, the same number of patches in each image.
        norm_pix: the target is standardised patch by patch (unbiased variance, epsilon 1e-6).
    Source: MAE, section 3 (arXiv 2111.06377).

    >>> mask = torch.tensor([[True, False]])
    >>> mae(torch.zeros(1, 2, 3), torch.ones(1, 2, 3), mask, norm_pix=False)
    tensor(1.)
    """
    if norm_pix:
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (var + 1e-6).sqrt()
    error = (prediction - target).square().mean(-1)  # (B, N)
    return (error * mask).sum() / mask.sum()


@full_precision
def simmim(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The mean absolute error per pixel, over masked patches.

    Args: the same as for `mae`.
    Source: SimMIM, eq. 1 (arXiv 2111.09886).

    >>> mask = torch.tensor([[True, False]])
    >>> simmim(torch.zeros(1, 2, 3), torch.ones(1, 2, 3), mask)
    tensor(1.)
    """
    error = (prediction - target).abs().mean(-1)  # (B, N)
    return (error * mask).sum() / mask.sum()


@full_precision
def masked_smooth_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The mean over blocks of the mean smooth L1 distance of their patches' features.

    Args:
        prediction, target: (B, N, D) features of the N patches of each block.
        mask: (B, N) bool, false for padding; at least one patch of each block is true.
    Source: I-JEPA, eq. 1 (arXiv 2301.08243), with the distance of its code.

    >>> mask = torch.tensor([[True, False]])
    >>> masked_smooth_l1(torch.zeros(1, 2, 3), torch.ones(1, 2, 3), mask)
    tensor(0.5000)
    """
    error = F.smooth_l1_loss(prediction, target, reduction="none").mean(-1)  # (B, N)
    return ((error * mask).sum(1) / mask.sum(1)).mean()


@full_precision
def masked_cross_entropy(
    logits: Tensor, targets: Tensor, mask: Tensor, temperature: float
) -> Tensor:
    """The mean over images of the mean over their masked patches of the cross-entropy

        -sum over k of target[k] * log softmax(logits / T)[k].

    Args:
        logits, targets: (B, N, K); targets are distributions without gradient.
        mask: (B, N) bool; the loss of an image without masked patches is 0.
        temperature: T > 0.
    Source: iBOT, eq. 2 (arXiv 2111.07832).

    >>> logits, targets = torch.zeros(1, 1, 4), torch.full((1, 1, 4), 0.25)
    >>> masked_cross_entropy(logits, targets, torch.tensor([[True]]), 0.1)  # log 4
    tensor(1.3863)
    """
    entropy = -(targets * (logits / temperature).log_softmax(-1)).sum(-1)  # (B, N)
    return ((entropy * mask).sum(1) / mask.sum(1).clamp_min(1)).mean()


@full_precision
def weighted_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """The sum over patches of weight * -sum over k of target[k] * log softmax(logits / T)[k].

    The same as `masked_cross_entropy` for the masked patches alone, if each has the weight
    1 / (number of images * number of masked patches of its image).

    Args:
        logits, targets: (M, K); targets are distributions without gradient.
        weights: (M,); temperature: T > 0.
    Source: DINOv2's code of iBOT's eq. 2 (arXiv 2304.07193, 2111.07832).

    >>> logits, targets = torch.zeros(2, 4), torch.full((2, 4), 0.25)
    >>> weighted_cross_entropy(logits, targets, torch.tensor([0.5, 0.5]), 0.1)  # log 4
    tensor(1.3863)
    """
    entropy = -(targets * (logits / temperature).log_softmax(-1)).sum(-1)  # (M,)
    return (entropy * weights).sum()
