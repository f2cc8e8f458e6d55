"""Batches of views in an order that follows from (seed, epoch) alone."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tacit import distributed, randomness
from tacit.data.images import Images, cut, decode
from tacit.errors import UserError
from tacit.views.make import Coordinates, boxes_and_flips, expand, finish_crops, make_views
from tacit.views.recipe import ViewGroup

AHEAD = 2  # batches that are decoded while the device trains


@dataclass(frozen=True)
class Batch:
    """What a method sees.

    Attributes:
        views: for each view (B, 3, s, s) float32, normalised.
        labels: (B,) int64 or None.
        at: the coordinates that the views follow from, for a method's own masks.
        step: of training, for choices that the images of a step share.
    """

    views: list[Tensor]
    labels: Tensor | None
    at: Coordinates
    step: int = 0

    @property
    def index(self) -> Tensor:
        """(B,) int64, each image's place in its source."""
        return self.at.index


class ViewLoader:
    """Views of a source, step by step; with W ranks each makes its part of every batch.

    Args:
        batch_size: images of a step over all ranks; the rest of an epoch is left out.
        parts: equal parts that a batch is split into, for gradient accumulation.
    Raises: UserError if the batch is larger than the source or not divisible.
    """

    def __init__(
        self,
        images: Images,
        groups: list[ViewGroup],
        *,
        batch_size: int,
        seed: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        parts: int = 1,
    ) -> None:
        world = distributed.world_size()
        if batch_size > len(images):
            raise UserError(
                f"batch_size={batch_size}: there are only {len(images)} images to train on; "
                f"set batch_size={len(images)} or less"
            )
        if batch_size % (world * parts):
            raise UserError(
                f"batch_size={batch_size} is no multiple of {world} processes x accumulate={parts}"
            )
        self.images, self.groups, self.seed = images, groups, seed
        self.batch_size, self.parts = batch_size, parts
        self._mean, self._std = mean, std
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return len(self.images) // self.batch_size

    def indices(self, step: int) -> np.ndarray:
        """(batch_size,) the images of a step, over all ranks."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = randomness.permutation(len(self.images), randomness.ORDER, self.seed, epoch)
            self._order = (epoch, order)
        return self._order[1][place * self.batch_size : (place + 1) * self.batch_size]

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """For each step its batch on this rank, as `parts` equal batches."""
        if self.images.tensor is not None:
            for step in range(start, stop):
                epoch = step // self.steps_per_epoch
                yield [self._in_memory(epoch, rows, step) for rows in self._own(step)]
            return
        waiting: deque[list[tuple[int, np.ndarray, list[Future]]]] = deque()
        try:
            for step in range(start, stop):
                while len(waiting) <= AHEAD and step + len(waiting) < stop:
                    later = step + len(waiting)
                    epoch = later // self.steps_per_epoch
                    waiting.append([self._submit(epoch, rows) for rows in self._own(later)])
                yield [self._collect(*part, step) for part in waiting.popleft()]
        finally:
            for _, _, crops in (part for parts in waiting for part in parts):
                for future in crops:
                    future.cancel()

    def batch_of(self, epoch: int, rows: np.ndarray) -> Batch:
        """The views of any images in any epoch: what training would see of them."""
        if self.images.tensor is not None:
            return self._in_memory(epoch, rows)
        return self._collect(*self._submit(epoch, rows))

    def _own(self, step: int) -> list[np.ndarray]:
        """This rank's images of a step, one array for each accumulated part."""
        parts = np.split(self.indices(step), self.parts)
        return [np.split(part, distributed.world_size())[distributed.rank()] for part in parts]

    def _coordinates(self, epoch: int, rows: np.ndarray, device: torch.device) -> Coordinates:
        index = torch.from_numpy(rows)
        if device.type == "cuda":
            index = index.pin_memory()
        return Coordinates(self.seed, epoch, index.to(device, non_blocking=True))

    def _batch(self, views: list[Tensor], at: Coordinates, step: int) -> Batch:
        labels = self.images.labels
        if labels is not None:
            labels = labels[at.index]
        return Batch(views, labels, at, step)

    def _in_memory(self, epoch: int, rows: np.ndarray, step: int = 0) -> Batch:
        at = self._coordinates(epoch, rows, self.images.device)
        pixels = self.images.tensor[at.index]
        views = make_views(pixels, self.groups, at, self._mean, self._std)
        return self._batch(views, at, step)

    def _submit(self, epoch: int, rows: np.ndarray) -> tuple[int, np.ndarray, list[Future]]:
        """Have the pool decode and crop each image; what `_collect` takes."""
        at = self._coordinates(epoch, rows, torch.device("cpu"))
        draws = [at.draws(view) for view, _ in expand(self.groups)]
        submit = self.images.pool.submit
        return (
            epoch,
            rows,
            [
                submit(self._crops, int(i), [u[n : n + 1] for u in draws])
                for n, i in enumerate(rows)
            ],
        )

    def _crops(self, i: int, draws: list[Tensor]) -> list[Tensor]:
        """All views' crops of one image: decoded once."""
        image = decode(self.images.source, i)
        crops = []
        for (_, group), u in zip(expand(self.groups), draws, strict=True):
            boxes, flips = boxes_and_flips(group, u, image.shape[0], image.shape[1])
            crops.append(cut(image, boxes[0].tolist(), group.size, bool(flips[0])))
        return crops

    def _collect(self, epoch: int, rows: np.ndarray, crops: list[Future], step: int = 0) -> Batch:
        device = self.images.device
        at = self._coordinates(epoch, rows, device)
        done = [future.result() for future in crops]
        stacked = [torch.stack(view) for view in zip(*done, strict=True)]
        if device.type == "cuda":
            stacked = [crop.pin_memory() for crop in stacked]
        moved = [crop.to(device, non_blocking=True) for crop in stacked]
        views = finish_crops(moved, self.groups, at, self._mean, self._std)
        return self._batch(views, at, step)
