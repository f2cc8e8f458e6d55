"""Statistics over a few seeds: intervals of a mean, paired differences, multiple comparisons.

The seeds of pretraining are the sample. Two methods that share a seed share the order of images,
the initial weights of the encoder and the test images, so their difference is taken seed by seed,
which removes what the seed does to both (Bouthillier et al., MLSys 2021, arXiv 2103.03098).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import special

LEVEL = 0.95  # of every interval
# Accuracies are fractions of the test images, often stored in float32: differences closer than this
# to each other are rounding, far below one of 50,000 images.
SAME = 1e-6


@dataclass(frozen=True)
class Paired:
    """a - b over the seeds that both have.

    Attributes:
        mean: of the differences; None without a common seed.
        half: half-width of its 95 % interval; None where no interval can be claimed.
        p: two-sided p-value of no difference; None where no test can be made.
        n: common seeds.
    """

    mean: float | None
    half: float | None
    p: float | None
    n: int


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half-width t(0.975, n - 1) s / sqrt(n) of its 95 % interval.

    Student, The Probable Error of a Mean, Biometrika 6 (1908): exact for normal values. The
    half-width is None for one value, and 0 if all are equal (raw pixels do not depend on the seed).
    Raises: ValueError without values.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    n, mean = len(values), fmean(values)
    if n < 2:
        return mean, None
    t = float(special.stdtrit(n - 1, 0.5 + LEVEL / 2))
    return mean, t * stdev(values) / math.sqrt(n)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired:
    """Student's paired t-test of a - b, {seed: value} each, over the seeds that both have.

    With one common seed there is a difference, but neither interval nor p. If all differences are
    equal, the spread is unknown and not zero, since accuracies move in steps of one test image:
    then half and p are None too, except where all differences are 0 (half 0, p 1).
    """
    differences = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
    n = len(differences)
    if n < 2:
        return Paired(differences[0] if n else None, None, None, n)
    mean, half = interval(differences)
    if max(map(abs, differences)) < SAME:
        return Paired(0.0, 0.0, 1.0, n)
    if max(differences) - min(differences) < SAME:
        return Paired(mean, None, None, n)
    t = mean / (stdev(differences) / math.sqrt(n))
    return Paired(mean, half, float(2 * special.stdtr(n - 1, -abs(t))), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected so that the chance of any false finding among all m stays below the level.

    Sorted upwards, the i-th (from 0) becomes max over j <= i of min(1, (m - j) p_j).
    Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Statist. 6 (1979).
    """
    corrected, least = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = least
    return corrected
