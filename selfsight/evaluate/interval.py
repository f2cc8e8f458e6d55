"""The interval of one accuracy over the draw of its test images."""

from scipy.stats import binomtest

from selfsight.evaluate.gain import LEVEL


def wilson(accuracy: float, images: int) -> tuple[float, float]:
    """The 95 % interval of the accuracy on other test images from where these are from.

    Wilson, Probable Inference, J. Am. Statist. Assoc. 22 (1927): it treats the images as
    independent draws, and says nothing about other seeds of the pretraining.

    >>> tuple(round(end, 4) for end in wilson(0.5, 100))
    (0.4038, 0.5962)
    """
    found = binomtest(round(accuracy * images), images).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)
