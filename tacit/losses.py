"""Losses as pure functions of this rank's embeddings; where samples couple, they gather ranks.

All are computed in full precision, whatever autocast says outside. With W ranks the mean of their
values and, averaged by DistributedDataParallel, their gradients equal those of one rank with the
whole batch.
"""

from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit import distributed


def full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Half-precision inputs become float32 and autocast is off inside; float64 stays as it is."""

    @wraps(loss)
    def wrapper(first: Tensor, *args, **kwargs) -> Tensor:
        with torch.autocast(first.device.type, enabled=False):
            args = [_widen(a) if isinstance(a, Tensor) else a for a in args]
            return loss(_widen(first), *args, **kwargs)

    return wrapper


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@full_precision
def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy: mean over 2B anchors i, with positive j, of

        -log( exp(sim(z_i, z_j) / T) / sum over k != i of exp(sim(z_i, z_k) / T) ),  sim = cosine.

    Args:
        z1, z2: (B, D) projections of the two views, not normalised; rows i show the same image.
        temperature: T > 0.
    Source: SimCLR, eq. 1 (arXiv 2002.05709). Negatives come from all ranks.
    """
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    anchors = torch.cat([z1, z2])  # (2B, D)
    all1, all2 = distributed.gather(z1), distributed.gather(z2)
    logits = anchors @ torch.cat([all1, all2]).T / temperature  # (2B, 2WB)
    b, n = len(z1), len(all1)
    own = torch.arange(b, device=z1.device) + distributed.rank() * b
    itself, positive = torch.cat([own, own + n]), torch.cat([own + n, own])
    logits = logits.scatter(1, itself[:, None], float("-inf"))
    return F.cross_entropy(logits, positive)


@full_precision
def info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each query's own key among the queue's keys: the mean over the batch of

        -log( exp(q.k+ / T) / (exp(q.k+ / T) + sum over the queue's k of exp(q.k / T)) ).

    Args:
        q, k: (B, D) queries and their own keys, normalised here; no gradient goes to k.
        queue: (K, D) keys of earlier batches, unit rows.
        temperature: T > 0.
    Source: MoCo, eq. 1 (arXiv 1911.05722).
    """
    q, k = F.normalize(q, dim=1), F.normalize(k.detach(), dim=1)
    positive = (q * k).sum(1, keepdim=True)  # (B, 1)
    logits = torch.cat([positive, q @ queue.to(q.dtype).T], dim=1) / temperature  # (B, 1 + K)
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


@full_precision
def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """The mean over the batch of -cos(p, z); the caller stops the gradient of the target.

    Args:
        p, z: (B, D) predictions and targets.
    Source: SimSiam, eq. 1 (arXiv 2011.10566); BYOL's eq. 2 (arXiv 2006.07733) is 2 + 2 times this.
    """
    return -F.cosine_similarity(p, z, dim=1, eps=1e-12).mean()
