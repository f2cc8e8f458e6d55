"""Contrastive losses: an anchor is close to its positive and far from all others, of all ranks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight import distributed
from selfsight.losses.precision import full_precision

BLOCK = 2**24  # logits computed at a time: 64 MiB in float32


class _Contrast(torch.autograd.Function):
    """The mean over anchors i of -log softmax of a_i . k_j / T, j != excluded_i, at its positive.

    Loss and gradient are computed together, for one block of anchors at a time. The matrix of all
    logits is never stored, and the number of matrix products is the same: three.
    """

    @staticmethod
    def forward(
        ctx,
        anchors: Tensor,
        keys: Tensor,
        positive: Tensor,
        excluded: Tensor | None,
        temperature: float,
    ) -> Tensor:
        to_anchors, to_keys = ctx.needs_input_grad[:2]
        grad_anchors = torch.empty_like(anchors) if to_anchors else None
        grad_keys = torch.zeros_like(keys) if to_keys else None
        total = anchors.new_zeros(())
        rows = min(len(anchors), max(1, BLOCK // len(keys)))
        block = anchors.new_empty(rows, len(keys))
        for start in range(0, len(anchors), rows):
            part = slice(start, start + rows)
            a, p = anchors[part], positive[part, None]
            logits = torch.mm(a, keys.T, out=block[: len(a)]).div_(temperature)  # (rows, K)
            if excluded is not None:
                logits.scatter_(1, excluded[part, None], float("-inf"))
            at_positive, largest = logits.gather(1, p), logits.amax(1, keepdim=True)
            weights = logits.sub_(largest).exp_()
            sums = weights.sum(1, keepdim=True)
            total += (sums.log() + largest - at_positive).sum()
            if not (to_anchors or to_keys):
                continue
            residual = weights.div_(sums)  # softmax - one-hot of the positive
            residual.scatter_add_(1, p, residual.new_full(p.shape, -1.0))
            if grad_anchors is not None:
                torch.mm(residual, keys, out=grad_anchors[part])
            if grad_keys is not None:
                grad_keys.addmm_(residual.T, a)
        ctx.save_for_backward(grad_anchors, grad_keys)
        ctx.scale = 1 / (len(anchors) * temperature)
        return total / len(anchors)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradient * ctx.scale
        return *(g if g is None else g * scale for g in ctx.saved_tensors), None, None, None


def _own(z: Tensor) -> Tensor:
    """(B,) the indices of this rank's rows among those of all ranks."""
    return torch.arange(len(z), device=z.device) + distributed.rank() * len(z)


@full_precision
def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy: mean over 2B anchors i, with positive j, of

        -log( exp(sim(z_i, z_j) / T) / sum over k != i of exp(sim(z_i, z_k) / T) ),  sim = cosine.

    Memory is proportional to B * D, not to B squared.
    Args:
        z1, z2: (B, D) projections of the two views, not normalised; rows i show the same image.
        temperature: T > 0.
    Source: SimCLR, eq. 1 (arXiv 2002.05709). Negatives come from all ranks.

    >>> z = torch.eye(2)  # two images whose views are equal
    >>> nt_xent(z, z, 1.0)  # log(1 + 2 / e)
    tensor(0.5514)
    """
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    keys = torch.cat([distributed.gather(z1), distributed.gather(z2)])  # (2WB, D)
    own = _own(z1)
    other = own + len(keys) // 2
    itself, positive = torch.cat([own, other]), torch.cat([other, own])
    return _Contrast.apply(torch.cat([z1, z2]), keys, positive, itself, temperature)


@full_precision
def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each query's own key against the keys of a queue: the mean over the batch of

        -log( exp(q.k+ / T) / (exp(q.k+ / T) + sum over the queue's k of exp(q.k / T)) ).

    Args:
        q, k: (B, D) queries and their own keys, normalised here; no gradient goes to k.
        queue: (K, D) keys of earlier batches, unit rows.
        temperature: T > 0.
    Source: MoCo, eq. 1 (arXiv 1911.05722).

    >>> unit = torch.eye(3)
    >>> info_nce(unit[:2], unit[:2], unit[2:], 1.0)  # log(1 + 1 / e)
    tensor(0.3133)
    """
    q, k = F.normalize(q, dim=1) / temperature, F.normalize(k.detach(), dim=1)
    positive = (q * k).sum(1, keepdim=True)  # (B, 1)
    logits = torch.cat([positive, q @ queue.to(q.dtype).T], dim=1)  # (B, 1 + K)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


@full_precision
def batch_info_nce(a: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each anchor's own key against the keys of the batch: the mean over i of

        -log( exp(a_i.k_i / T) / sum over j of exp(a_i.k_j / T) ).

    Args:
        a, k: (B, D) anchors and their keys, normalised here. Gradients go to both; detach the
            targets.
        temperature: T > 0.
    Source: MoCo v3, eq. 1 (arXiv 2104.02057; it multiplies by 2T); NNCLR, eq. 3 (arXiv 2104.14548).

    >>> unit = torch.eye(2)
    >>> batch_info_nce(unit, unit, 1.0)  # log(1 + 1 / e)
    tensor(0.3133)
    """
    a, k = F.normalize(a, dim=1), F.normalize(k, dim=1)
    return _Contrast.apply(a, distributed.gather(k), _own(a), None, temperature)


@full_precision
def dcl(z1: Tensor, z2: Tensor, temperature: float, sigma: float | None = None) -> Tensor:
    """Decoupled contrastive loss: NT-Xent without the positive in the denominator. Mean over 2B of

        -w_i z_i.z_j / T + log( sum over k of other images of exp(z_i.z_k / T) ).

    Args:
        z1, z2: (B, D) projections of the two views, normalised here.
        temperature: T > 0.
        sigma: width of the von Mises-Fisher weights w_i = 2 - exp(z_i.z_j / sigma) / (its mean over
            the batch), which are constants for the gradient (DCLW); None: w_i = 1.
    Source: Decoupled Contrastive Learning, eq. 6 and 7 (arXiv 2110.06848).

    >>> z = torch.eye(2)
    >>> dcl(z, z, 1.0)  # -1 + log 2
    tensor(-0.3069)
    """
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    keys = torch.cat([distributed.gather(z1), distributed.gather(z2)])  # (2WB, D)
    own = _own(z1)[:, None]
    same = torch.cat([own, own + len(keys) // 2], dim=1)  # (B, 2) the indices of this image
    positive = (z1 * z2).sum(1)  # (B,)
    weight: Tensor | float = 1.0
    if sigma is not None:
        density = (positive.detach() / sigma).exp()
        mean = distributed.all_sum(density.sum()) / (len(z1) * distributed.world_size())
        weight = 2 - density / mean
    loss = -(weight * positive / temperature).mean()
    for z in (z1, z2):
        logits = (z @ keys.T / temperature).scatter(1, same, float("-inf"))  # (B, 2WB)
        loss = loss + logits.logsumexp(1).mean() / 2
    return loss


@full_precision
def sup_con(z1: Tensor, z2: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss: all views of the anchor's class, P(i), are positives;

        mean over 2B anchors of the mean over p in P(i) of
        -log( exp(z_i.z_p / T) / sum over k != i of exp(z_i.z_k / T) ).

    Args:
        z1, z2: (B, D) projections of the two views, normalised here.
        labels: (B,) int64.
        temperature: T > 0.
    Source: Supervised Contrastive Learning, eq. 2 (arXiv 2004.11362).

    >>> z, labels = torch.eye(2), torch.tensor([0, 1])
    >>> sup_con(z, z, labels, 1.0)  # log(1 + 2 / e), as NT-Xent: each class has one image
    tensor(0.5514)
    """
    anchors = torch.cat([F.normalize(z1, dim=1), F.normalize(z2, dim=1)])  # (2B, D)
    keys = torch.cat([distributed.gather(z) for z in anchors.chunk(2)])  # (2WB, D)
    classes = distributed.gather(labels).repeat(2)
    own = _own(z1)
    itself = torch.cat([own, own + len(keys) // 2])[:, None]
    logits = (anchors @ keys.T / temperature).scatter(1, itself, float("-inf"))
    positive = (labels.repeat(2)[:, None] == classes).scatter(1, itself, False)
    log_probability = logits.log_softmax(1).masked_fill(~positive, 0)
    return -(log_probability.sum(1) / positive.sum(1)).mean()
