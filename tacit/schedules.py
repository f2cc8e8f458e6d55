"""What changes with time, as functions of progress: the fraction of training done, in [0, 1].

The engine evaluates them at the middle of each step, progress = (step + 0.5) / steps, so that no
step runs at a rate of exactly zero, neither the first of a warm-up nor the last of a cosine.
"""

import math


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at progress 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def linear(start: float, end: float, progress: float, until: float = 1.0) -> float:
    """From `start` at progress 0 in a line to `end` at progress `until`, and `end` after it."""
    return end if progress >= until else start + (end - start) * progress / until


def warmup_cosine(progress: float, warmup: float, final: float = 0.0) -> float:
    """Factor on the base learning rate: linear from 0 to 1, then half a cosine from 1 to `final`.

    Args:
        progress: fraction of training done.
        warmup: fraction of training that the linear part takes, in [0, 1]; continuous at its end.
        final: factor at the end.
    Source: SGDR (Loshchilov and Hutter, arXiv 1608.03983), with the warm-up of Goyal et al.
    (1706.02677).
    """
    if progress < warmup:
        return progress / warmup
    return cosine(1.0, final, (progress - warmup) / max(1e-12, 1.0 - warmup))


def warmup_constant(progress: float, warmup: float) -> float:
    """Factor on the base learning rate: linear from 0 to 1, then constant."""
    return progress / warmup if progress < warmup else 1.0
