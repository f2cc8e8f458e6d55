"""Losses between a prediction and its target: cosine, and cross-entropy over prototypes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight import distributed
from selfsight.losses.precision import full_precision


@full_precision
def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """The mean over the batch of -cos(p, z). The caller has to stop the gradient of the target.

    Args:
        p, z: (B, D) predictions and targets.
    Source: SimSiam, eq. 1 (arXiv 2011.10566); BYOL's eq. 2 (arXiv 2006.07733) is 2 + 2 times this.

    >>> negative_cosine(torch.eye(2), 3 * torch.eye(2))
    tensor(-1.)
    """
    return -F.cosine_similarity(p, z, dim=1, eps=1e-12).mean()


@full_precision
def centre_distance(views: list[Tensor], large: int) -> Tensor:
    """The mean over views, samples and features of the squared distance to the large views' mean.

    Args:
        views: the embeddings (B, D) of each view, the large views first.
        large: number of large views.
    Source: LeJEPA, algorithm 2 (arXiv 2511.08544).

    >>> views = [torch.eye(2), torch.eye(2), torch.eye(2)]
    >>> centre_distance(views, large=2)
    tensor(0.)
    """
    center = torch.stack(views[:large]).mean(0)
    return torch.stack([(z - center).square().mean() for z in views]).mean()


@torch.no_grad()
@full_precision
def sinkhorn(scores: Tensor, epsilon: float | Tensor, iterations: int) -> Tensor:
    """Soft assignments close to exp(scores / epsilon) that use all prototypes equally.

    Columns (prototypes) and rows of the matrix of all ranks are normalised in turn.
    Args:
        scores: (B, K) of each sample with each prototype; B may differ between ranks, and be 0.
        epsilon: > 0; larger values make assignments softer.
        iterations: how often columns and rows are normalised.
    Returns: (B, K), each row a distribution.
    Source: SwAV, eq. 3 and appendix A (arXiv 2006.09882); Cuturi (arXiv 1306.0895).

    >>> sinkhorn(torch.zeros(2, 2), epsilon=0.05, iterations=3)
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    largest = scores.max() if len(scores) else scores.new_tensor(-torch.inf)
    largest = distributed.all_max(largest)
    # Subtracting the maximum changes nothing, since the first line of the loop cancels a common
    # factor. float32 can still express e^-80.
    q = (scores - largest).div_(epsilon).clamp_min_(-80).exp_()
    for _ in range(iterations):
        q /= distributed.all_sum(q.sum(0))
        q /= q.sum(1, keepdim=True)
    return q


@full_precision
def swapped_prediction(logits: list[Tensor], targets: list[Tensor], temperature: float) -> Tensor:
    """Cross-entropy of each target view and every other view: the mean over pairs i != v of

        -sum over k of target_i[k] * log softmax(logits_v / T)[k].

    Args:
        logits: (B, K) for each view.
        targets: distributions (B, K) for the first views, constants for the gradient.
        temperature: T > 0.
    Source: SwAV, eq. 2 (arXiv 2006.09882); DINO, eq. 3 (arXiv 2104.14294).

    >>> logits, targets = [torch.zeros(1, 2)] * 2, [torch.full((1, 2), 0.5)] * 2
    >>> swapped_prediction(logits, targets, 0.1)  # log 2
    tensor(0.6931)
    """
    predicted = [F.log_softmax(x / temperature, dim=1) for x in logits]
    terms = [
        -(target.detach() * x).sum(1).mean()
        for i, target in enumerate(targets)
        for v, x in enumerate(predicted)
        if v != i
    ]
    return torch.stack(terms).mean()


@torch.no_grad()
@full_precision
def centred_softmax(logits: Tensor, center: Tensor, temperature: float | Tensor) -> Tensor:
    """softmax((logits - center) / T), the teacher's targets; the centre prevents collapse.

    Args:
        logits: (..., K); center: (K,); temperature: T > 0.
    Source: DINO, section 3.1 (arXiv 2104.14294).

    >>> centred_softmax(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), 0.04)
    tensor([0.5000, 0.5000])
    """
    return ((logits - center) / temperature).softmax(-1)
