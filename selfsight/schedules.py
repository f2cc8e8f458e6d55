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


def rise(part: float, start: float = 0.0, shape: str = "linear") -> float:
    """Factor on the base learning rate during a warm-up: from `start` at part 0 to 1 at part 1.

    Args:
        part: fraction of the warm-up done, in [0, 1].
        shape: linear; exponential, which grows by the same factor each step (start above 0);
            or cosine, half of one.
    """
    if shape == "exponential":
        return start ** (1.0 - part)
    return cosine(start, 1.0, part) if shape == "cosine" else start + (1.0 - start) * part
