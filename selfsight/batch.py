"""The input of a method: the views of a batch of images, and which images they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from selfsight import distributed, randomness

MOST_CHANNELS = 32  # of an image
ImageSize = int | tuple[int, int]  # the side of a square in pixels, or (height, width)


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels.

    >>> sides(32), sides((32, 96))
    ((32, 32), (32, 96))
    """
    return (size, size) if isinstance(size, int) else (size[0], size[1])


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
        views: for each view (B, C, h, w) float32, normalised; sizes may differ.
        labels: (B,) int64, or None.
        keys: which images these are; masked methods draw their masks with it.
        step: of training, from 0; for random numbers that all images of a step share.

    >>> batch = batch_of(torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32))
    >>> len(batch.views), batch.labels
    (2, None)
    """

    views: list[Tensor]
    labels: Tensor | None
    keys: SampleKey
    step: int = 0

    @property
    def index(self) -> Tensor:
        """(B,) int64, each image's index in its source."""
        return self.keys.index


def batch_of(
    *views: Tensor,
    labels: Tensor | None = None,
    seed: int | None = None,
    epoch: int = 0,
    index: Tensor | None = None,
    step: int = 0,
) -> Batch:
    """A batch for a method outside of the engine.

    Args:
        views: of the same images in the same order, (B, C, h, w) each.
        labels: (B,) int64.
        seed, epoch, index: the coordinates of the images, from which masks are drawn: the same
            ones give the same masks. Without a seed, one is drawn from torch's global generator, as
            dropout does; without an index, images are numbered through the batch of all ranks.
        step: of training, from 0.

    >>> images = torch.rand(4, 3, 32, 32)
    >>> batch_of(images, seed=0).index
    tensor([0, 1, 2, 3])
    """
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    count, device = len(views[0]), views[0].device
    if index is None:
        first = count * distributed.rank()
        index = torch.arange(first, first + count)
    return Batch(list(views), labels, SampleKey(seed, epoch, index.to(device)), step)
