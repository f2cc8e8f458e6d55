"""Threads that decode images and cut their crops straight into batches.

Decoding and resizing leave Python's lock free, so threads use all cores, and what they make needs
no copy from another process. Each task is a few images, so that the boxes of their crops are
computed together.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selfsight.data.images import Images, resize

TASK = 8  # images that a thread takes at a time

# Of n images, their places, heights and widths (n,): for each view boxes (n, 4).
Boxes = Callable[[Tensor, Tensor, Tensor], list[Tensor]]


@dataclass(frozen=True)
class PendingCrops:
    """A batch that threads are filling.

    Attributes:
        views: for each (B, s, s, 3) uint8, not mirrored; to be read after `wait`.
    """

    views: list[Tensor]
    _tasks: list[Future]

    def wait(self) -> np.ndarray:
        """(B,) the images that it holds: those asked for, or stand-ins of broken ones."""
        return np.concatenate([task.result() for task in self._tasks])

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


class CropDecoder:
    """Makes batches of crops of the images' parts that `boxes` names."""

    def __init__(self, images: Images, sizes: list[int]) -> None:
        self._images, self._sizes = images, sizes
        self._spare: list[list[Tensor]] = []  # batches that are not in use
        self._pinned = images.device.type == "cuda"  # then torch keeps the spare ones, not we

    def submit(self, rows: np.ndarray, boxes: Boxes) -> PendingCrops:
        """Have the threads make this batch."""
        views = self._batch(len(rows))
        tasks = []
        for start in range(0, len(rows), TASK):
            part = slice(start, start + TASK)
            outs = [view[part].numpy() for view in views]
            tasks.append(self._images.pool.submit(_fill, self._images, rows[part], outs, boxes))
        return PendingCrops(views, tasks)

    def take_back(self, crops: PendingCrops) -> None:
        """The batch was read and can be filled anew."""
        if self._images.device.type == "cpu":
            self._spare.append(crops.views)

    def _batch(self, count: int) -> list[Tensor]:
        if self._spare and len(self._spare[-1][0]) == count:
            return self._spare.pop()
        shapes = [(count, size, size, 3) for size in self._sizes]
        return [torch.empty(s, dtype=torch.uint8, pin_memory=self._pinned) for s in shapes]


def _fill(images: Images, rows: np.ndarray, outs: list[np.ndarray], boxes: Boxes) -> np.ndarray:
    """Decode each image once and cut all its crops; returns the images that were taken."""
    taken, pictures = zip(*(images.decode(int(i)) for i in rows), strict=True)
    sizes = torch.tensor([picture.shape[:2] for picture in pictures])
    cuts = boxes(torch.tensor(taken), sizes[:, 0], sizes[:, 1])
    for out, places in zip(outs, cuts, strict=True):
        for n, box in enumerate(places.tolist()):
            out[n] = resize(pictures[n], box, out.shape[1])
    return np.array(taken)
