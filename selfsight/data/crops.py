"""Threads that decode images and write their crops into the tensors of a batch.

Decoding and resizing release Python's global lock, so threads use all cores, and no other process
has to send its result. A task is a few images, so that the boxes of their crops are computed
together.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from selfsight.batch import sides
from selfsight.data.images import Images, resize

TASK = 8  # images of one task

# Of n images the indices, heights and widths, each (n,) -> for each view int64 (n, 4) boxes: top,
# left, height, width in pixels; or (n, 5), where the last column is 1 for a crop to be mirrored.
Draw = Callable[[Tensor, Tensor, Tensor], list[Tensor]]
Worked = Callable[[str, float], None]


@dataclass(frozen=True)
class PendingCrops:
    """A batch that threads are writing; its tensors may be read after `wait`.

    Attributes:
        views: for each view (B, h, w, C) uint8 or uint16, not yet mirrored.
        flips: (V, B) bool, the crops to be mirrored, as drawn together with their boxes.
    """

    views: list[Tensor]
    flips: Tensor
    _tasks: list[Future]

    def wait(self) -> np.ndarray:
        """(B,) indices of the images in the batch: undecodable ones are replaced by others."""
        return np.concatenate([task.result() for task in self._tasks])

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


class CropDecoder:
    """Makes batches of crops, one crop of each image for each view.

    Args:
        sizes: of each view the side of its crops in pixels, or height and width.
    """

    def __init__(self, images: Images, sizes: Sequence[int | Sequence[int]]) -> None:
        keys = images.config
        self._images = images
        self._shapes = [(*sides(size), keys.channels) for size in sizes]
        self._type = torch.uint8 if keys.bits == 8 else torch.uint16
        self._spare: list[tuple[list[Tensor], Tensor]] = []  # tensors of batches to be reused
        self._pinned = images.device.type == "cuda"  # torch itself reuses pinned memory

    def submit(self, rows: np.ndarray, draw: Draw, worked: Worked | None = None) -> PendingCrops:
        """Start a batch of the images with these indices.

        Args:
            worked: called in the threads with "decode" or "crops" and the seconds it took.
        """
        views, flips = self._batch(len(rows))
        tasks = []
        for start in range(0, len(rows), TASK):
            part = slice(start, start + TASK)
            outs = [view[part].numpy() for view in views]
            task = self._images.pool.submit(
                _fill, self._images, rows[part], outs, flips[:, part], draw, worked
            )
            tasks.append(task)
        return PendingCrops(views, flips, tasks)

    def take_back(self, crops: PendingCrops) -> None:
        """Reuse the tensors of a batch that nobody reads any more."""
        if self._images.device.type == "cpu":
            self._spare.append((crops.views, crops.flips))

    def _batch(self, count: int) -> tuple[list[Tensor], Tensor]:
        if self._spare and self._spare[-1][1].shape[1] == count:
            return self._spare.pop()
        shapes = [(count, *shape) for shape in self._shapes]
        views = [torch.empty(s, dtype=self._type, pin_memory=self._pinned) for s in shapes]
        shape = len(views), count
        return views, torch.empty(shape, dtype=torch.bool, pin_memory=self._pinned)


def _fill(
    images: Images,
    rows: np.ndarray,
    outs: list[np.ndarray],
    flips: Tensor,
    draw: Draw,
    worked: Worked | None,
) -> np.ndarray:
    """Decode each image once and write all its crops; returns the indices of the images used."""
    began = time.perf_counter()
    taken, decoded = zip(*(images.decode(int(i)) for i in rows), strict=True)
    decoding = time.perf_counter() - began
    sizes = torch.tensor([image.shape[:2] for image in decoded])
    drawn = draw(torch.tensor(taken), sizes[:, 0], sizes[:, 1])
    for out, flip, crops in zip(outs, flips, drawn, strict=True):
        flip[:] = crops[:, 4:].any(1)  # without a fifth column none is mirrored
        for n, box in enumerate(crops[:, :4].tolist()):
            out[n] = resize(decoded[n], box, out.shape[1:3])
    if worked:
        worked("decode", decoding)
        worked("crops", time.perf_counter() - began - decoding)
    return np.array(taken)
