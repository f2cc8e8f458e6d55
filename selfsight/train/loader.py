"""Batches of views. Which images are in a batch depends on seed and step alone."""

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from selfsight import distributed, randomness
from selfsight.batch import Batch, Normalization, SampleKey
from selfsight.data.crops import CropDecoder, PendingCrops
from selfsight.data.images import Images, to_device
from selfsight.errors import UserError
from selfsight.train.config import TrainConfig
from selfsight.train.events import SILENT, Events
from selfsight.views.make import (
    CROP_DRAWS,
    Compile,
    boxes_and_flips,
    expand,
    finish_crops,
    make_views,
)
from selfsight.views.recipe import ViewGroup

AHEAD = 2  # batches that are decoded while the device trains


class ViewLoader:
    """The batches of a training, step by step. Each rank makes its own part of every batch.

    Args:
        batch_size: images of a step, over all ranks. An epoch's last images that fill no batch are
            left out.
        parts: the number of equal parts of a batch, for gradient accumulation.
        compile: compile the views to fused kernels; auto: on GPUs.
    Raises: UserError if a batch has more images than the source, or is not divisible.
    """

    def __init__(
        self,
        images: Images,
        groups: list[ViewGroup],
        *,
        batch_size: int,
        seed: int,
        normalization: Normalization,
        parts: int = 1,
        compile: Compile = "auto",
    ) -> None:
        if batch_size > len(images):
            raise UserError(
                f"batch_size={batch_size}: there are only {len(images)} images to train on; "
                f"set batch_size={len(images)} or less"
            )
        check_shares(batch_size, distributed.world_size(), parts)
        self.images, self.groups, self.seed = images, groups, seed
        self.batch_size, self.parts = batch_size, parts
        self.normalization = normalization
        self._finish = normalization, compile
        self._views = list(expand(groups))
        self._decoder = CropDecoder(images, [group.sides for _, group in self._views])

    @property
    def steps_per_epoch(self) -> int:
        return len(self.images) // self.batch_size

    def indices(self, step: int) -> np.ndarray:
        """(batch_size,) the indices of the images of a step, over all ranks."""
        return self._at(step, np.arange(self.batch_size))

    def _at(self, step: int, places: np.ndarray) -> np.ndarray:
        """The indices of the images at these places of the batch of a step."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        places = batch * self.batch_size + places
        return randomness.shuffled(places, len(self.images), randomness.ORDER, self.seed, epoch)

    def steps(self, start: int, stop: int, events: Events = SILENT) -> Iterator[list[Batch]]:
        """For each step this rank's batch, in `parts` equal batches."""
        if self.images.tensor is not None:
            for step in range(start, stop):
                batch = [self._in_memory(epoch, rows, step) for epoch, rows in self._own(step)]
                events.mark("views")
                yield batch
                events.mark("log, save")
            return
        waiting: deque[list[PendingCrops]] = deque()
        try:
            for step in range(start, stop):
                for later in range(step + len(waiting), min(step + AHEAD + 1, stop)):
                    own = self._own(later)
                    waiting.append([self._submit(epoch, rows, events) for epoch, rows in own])
                epoch = step // self.steps_per_epoch
                parts = waiting.popleft()
                yield [self._collect(epoch, crops, step, events) for crops in parts]
                events.mark("log, save")
        finally:
            for crops in (crops for parts in waiting for crops in parts):
                crops.cancel()

    def batch_of(self, epoch: int, rows: np.ndarray) -> Batch:
        """The views that training makes of these images in this epoch."""
        if self.images.tensor is not None:
            return self._in_memory(epoch, rows)
        return self._collect(epoch, self._submit(epoch, rows))

    def _own(self, step: int) -> list[tuple[int, np.ndarray]]:
        """For each part of a step: epoch, and the indices of this rank's images."""
        parts = np.arange(self.batch_size).reshape(self.parts, distributed.world_size(), -1)
        own = (self._at(step, places) for places in parts[:, distributed.rank()])
        return [(step // self.steps_per_epoch, rows) for rows in own]

    def _coordinates(self, epoch: int, rows: np.ndarray) -> SampleKey:
        return SampleKey(self.seed, epoch, to_device(torch.from_numpy(rows), self.images.device))

    def _batch(self, views: list[Tensor], at: SampleKey, rows: np.ndarray, step: int) -> Batch:
        return Batch(views, self.images.labels_of(rows), at, step)

    def _in_memory(self, epoch: int, rows: np.ndarray, step: int = 0) -> Batch:
        rows = self.images.replace_bad(rows)
        at = self._coordinates(epoch, rows)
        pixels = self.images.tensor[at.index]
        return self._batch(make_views(pixels, self.groups, at, *self._finish), at, rows, step)

    def _submit(self, epoch: int, rows: np.ndarray, events: Events = SILENT) -> PendingCrops:
        """Queue these images: the pool's threads decode and crop them."""

        def draw(index: Tensor, height: Tensor, width: Tensor) -> list[Tensor]:
            at = SampleKey(self.seed, epoch, index)
            return [
                torch.column_stack(
                    boxes_and_flips(group, at.uniform(view, CROP_DRAWS), height, width)
                )
                for view, group in self._views
            ]

        return self._decoder.submit(rows, draw, events.worked)

    def _collect(
        self, epoch: int, crops: PendingCrops, step: int = 0, events: Events = SILENT
    ) -> Batch:
        taken = crops.wait()
        events.mark("waiting for data")
        at = self._coordinates(epoch, taken)
        moved = self._move(crops)
        events.mark("transfer")
        views = finish_crops(*moved, self.groups, at, *self._finish)
        self._decoder.take_back(crops)
        events.mark("views")
        return self._batch(views, at, taken, step)

    def _move(self, crops: PendingCrops) -> tuple[list[Tensor], Tensor]:
        """On the device: for each view (B, C, h, w), channels last; flips (V, B) bool."""
        device = self.images.device
        views = [v.to(device, non_blocking=True).permute(0, 3, 1, 2) for v in crops.views]
        return views, crops.flips.to(device, non_blocking=True)


def check_shares(batch_size: int, processes: int, parts: int) -> None:
    """Raises: UserError if a batch has no equal parts for the processes."""
    if batch_size % (processes * parts):
        raise UserError(
            f"batch_size={batch_size}: not a multiple of {processes} processes x "
            f"accumulate={parts}; choose a multiple of {processes * parts}"
        )


def make_loader(config: TrainConfig, images: Images) -> ViewLoader:
    """The loader that a configuration describes."""
    return ViewLoader(
        images,
        config.views,
        batch_size=config.batch_size,
        seed=config.seed,
        normalization=images.config.normalization,
        parts=config.accumulate,
        compile=config.compile and "auto",
    )
