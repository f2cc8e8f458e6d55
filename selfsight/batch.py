"""What a method sees: the views of a batch of images, and which images they are."""

from dataclasses import dataclass

from torch import Tensor

from selfsight import randomness


@dataclass(frozen=True)
class SampleKey:
    """Which images a batch holds, in which epoch of which seed: all randomness follows from this.

    Attributes:
        index: (B,) int64, each image's index in its source.
    """

    seed: int
    epoch: int
    index: Tensor

    def uniform(self, view: int, slots: int, purpose: int = randomness.VIEWS) -> Tensor:
        """(B, slots) uniform numbers of one view."""
        return randomness.uniform(self.seed, self.epoch, self.index, view, slots, purpose)

    def stream(self, view: int, purpose: int = randomness.VIEWS) -> Tensor:
        """() the key of one view's numbers: all coordinates but the images' indices."""
        return randomness.stream(purpose, self.seed, self.epoch, view)

    def mask_draws(self, view: int, slots: int) -> Tensor:
        """(B, slots) uniform numbers for the mask of one view."""
        return self.uniform(view, slots, randomness.MASKS)


@dataclass(frozen=True)
class Batch:
    """The input of `Method.forward`.

    Attributes:
        views: for each view (B, 3, s, s) float32, normalised.
        labels: (B,) int64 or None.
        keys: which images these are; masked methods draw their masks from it.
        step: of training, for random choices that all images of a step share.
    """

    views: list[Tensor]
    labels: Tensor | None
    keys: SampleKey
    step: int = 0

    @property
    def index(self) -> Tensor:
        """(B,) int64, each image's index in its source."""
        return self.keys.index
