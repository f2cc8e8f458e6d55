"""The input of a method: the views of a batch of images, and which images they are."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from selfsight import randomness


class Normalization(NamedTuple):
    """What pixels in [0, 1] are normalised with, per channel: (x - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class SampleKey:
    """The coordinates of a batch. All random numbers of its images are functions of them.

    Attributes:
        seed: of the run.
        epoch: from 0.
        index: (B,) int64, each image's index in its source.
    """

    seed: int
    epoch: int
    index: Tensor

    def uniform(self, view: int, slots: int, purpose: int = randomness.VIEWS) -> Tensor:
        """(B, slots) uniform numbers in [0, 1) for one view."""
        return randomness.uniform(self.seed, self.epoch, self.index, view, slots, purpose)

    def stream(self, view: int, purpose: int = randomness.VIEWS) -> Tensor:
        """() int64, the key of one view's numbers: made of all coordinates but `index`."""
        return randomness.stream(purpose, self.seed, self.epoch, view)

    def mask_draws(self, view: int, slots: int) -> Tensor:
        """(B, slots) uniform numbers in [0, 1) for the mask of one view."""
        return self.uniform(view, slots, randomness.MASKS)


@dataclass(frozen=True)
class Batch:
    """The input of `Method.forward`.

    Attributes:
        views: for each view (B, 3, s, s) float32, normalised; sizes s may differ.
        labels: (B,) int64, or None.
        keys: which images these are; masked methods draw their masks with it.
        step: of training, from 0; for random numbers that all images of a step share.
    """

    views: list[Tensor]
    labels: Tensor | None
    keys: SampleKey
    step: int = 0

    @property
    def index(self) -> Tensor:
        """(B,) int64, each image's index in its source."""
        return self.keys.index
