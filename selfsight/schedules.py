"""Schedules as functions of progress, the fraction of training done, in [0, 1].

The engine evaluates them in the middle of each step, progress = (step + 0.5) / steps, so that the
learning rate is never exactly 0: not in the first step of a warm-up, nor in the last of a cosine.
"""

import math


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at progress 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def linear(start: float, end: float, progress: float, until: float = 1.0) -> float:
    """A line from `start` at progress 0 to `end` at progress `until`; `end` after that."""
    return end if progress >= until else start + (end - start) * progress / until


def rise(part: float, start: float = 0.0, shape: str = "linear") -> float:
    """Factor on the base learning rate during a warm-up: from `start` at part 0 to 1 at part 1.

    Args:
        part: fraction of the warm-up done, in [0, 1].
        shape: "linear"; "exponential", the same factor in each step (needs start > 0); or
            "cosine", half a cosine.
    """
    if shape == "exponential":
        return start ** (1.0 - part)
    return cosine(start, 1.0, part) if shape == "cosine" else start + (1.0 - start) * part
