"""Whether one encoder classifies the same images better than another, with an interval."""

import numpy as np
from torch import Tensor

from selfsight import randomness

DRAWS = 10_000  # of the test images, with replacement
LEVEL = 0.95  # of the interval


def gain(right: Tensor, other: Tensor, seed: int) -> dict[str, float]:
    """The difference of two accuracies on the same M images, and its 95 % interval.

    The images are drawn again 10,000 times, M with replacement; the interval holds the middle 95 %
    of the differences (percentile bootstrap, Efron 1979). An image that both get right or wrong
    adds nothing, so it is narrower than that of two independent accuracies.

    Args:
        right, other: (M,) bool, the images that each gets right.
    Returns: "mean", "low" and "high", fractions of the images; "draws".

    >>> gain(torch.ones(8).bool(), torch.tensor([1, 1, 1, 1, 1, 1, 1, 0]).bool(), seed=0)
    {'mean': 0.125, 'low': 0.0, 'high': 0.375, 'draws': 10000}
    """
    a, b, n = right.bool(), other.bool(), len(right)
    won, lost = int((a & ~b).sum()), int((b & ~a).sum())
    draws = np.random.default_rng(randomness.key(randomness.DRAWS, seed))
    shares = np.array([won, lost, n - won - lost]) / n
    counts = draws.multinomial(n, shares, DRAWS)  # (DRAWS, 3)
    differences = (counts[:, 0] - counts[:, 1]) / n
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": (won - lost) / n, "low": float(low), "high": float(high), "draws": DRAWS}
