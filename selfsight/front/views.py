"""Views outside of the engine: the same augmentations, for a loop of your own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsight import distributed
from selfsight.batch import Normalization, SampleKey
from selfsight.config import Tree, validate
from selfsight.data.config import DataConfig
from selfsight.data.images import resize
from selfsight.errors import UserError
from selfsight.views.make import CROP_DRAWS, boxes_and_flips, expand, finish_crops, make_views
from selfsight.views.ops.augment import WHITE
from selfsight.views.recipe import ViewGroup, check_channels, preset

Images = Tensor | np.ndarray | Sequence[np.ndarray]


class Views:
    """A recipe of views as a function of images and their coordinates.

    A view depends on seed, epoch and index of an image alone, and not on the batch it is in: with
    the same ones the engine makes the same view.

    Args:
        recipe: a preset's name, or groups of views as in a configuration's `views`.
        size: the longest side in pixels of the largest views; smaller ones keep their ratio to
            them.
        seed: of all random numbers.
        mean, std: what pixels in [0, 1] are normalised with: a number for each channel.
    Raises: UserError for a preset or a key that does not exist.

    >>> images = torch.randint(256, (4, 3, 40, 40), dtype=torch.uint8)
    >>> x1, x2 = Views("simclr", size=32)(images, epoch=0)
    >>> x1.shape
    torch.Size([4, 3, 32, 32])
    """

    def __init__(
        self,
        recipe: str | Sequence[Tree],
        *,
        size: int | None = None,
        seed: int = 0,
        mean: Sequence[float] = DataConfig().normalization.mean,
        std: Sequence[float] = DataConfig().normalization.std,
    ) -> None:
        groups = preset(recipe) if isinstance(recipe, str) else list(recipe)
        self.groups = [validate(ViewGroup, dict(group)) for group in groups]
        if not self.groups:
            raise UserError("views: give at least one group")
        if size is not None:
            largest = max(max(group.sides) for group in self.groups)
            self.groups = [_scaled(group, size, largest) for group in self.groups]
        self.seed, self.normalization = seed, Normalization(tuple(mean), tuple(std))
        try:
            check_channels(self.groups, len(self.normalization.mean))
        except ValueError as error:
            raise UserError(str(error)) from None

    def __len__(self) -> int:
        """The number of views of an image."""
        return sum(group.count for group in self.groups)

    @torch.no_grad()
    def __call__(
        self, images: Images, *, epoch: int = 0, index: Tensor | Sequence[int] | None = None
    ) -> list[Tensor]:
        """The views of a batch of images, (B, C, h, w) float32 each, normalised.

        Args:
            images: a tensor (B, C, H, W) or an array (B, H, W, C) of uint8 or uint16, or a list of
                uint8 arrays (H, W, C) of any sizes; C numbers are in `mean` and `std`.
            epoch: another one gives other views.
            index: (B,) the index of each image in its data set (default: numbered through the batch
                of all ranks).
        Raises: UserError for images of another type.
        """
        pixels = images
        if isinstance(images, np.ndarray) and images.ndim == 4:
            pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        if isinstance(pixels, Tensor):
            channels = len(self.normalization.mean)
            if pixels.ndim != 4 or pixels.shape[1] != channels or pixels.dtype not in WHITE:
                raise UserError(
                    f"images: expected uint8 or uint16 (B, {channels}, H, W), found {pixels.dtype} "
                    f"{tuple(pixels.shape)}"
                )
            at = self._coordinates(len(pixels), pixels.device, epoch, index)
            with torch.autocast(pixels.device.type, enabled=False):
                return make_views(pixels, self.groups, at, self.normalization)
        with torch.autocast("cpu", enabled=False):
            return self._of_list(list(images), epoch, index)

    def _coordinates(self, count: int, device: Any, epoch: int, index: Any) -> SampleKey:
        if index is None:
            first = count * distributed.rank()
            index = torch.arange(first, first + count)
        index = torch.as_tensor(index, dtype=torch.int64)
        if index.shape != (count,):
            raise UserError(f"index: {tuple(index.shape)} for {count} images; give one for each")
        return SampleKey(self.seed, epoch, index.to(device))

    def _of_list(self, images: list[np.ndarray], epoch: int, index: Any) -> list[Tensor]:
        """Images of any sizes, cropped one by one."""
        channels = len(self.normalization.mean)
        for image in images:
            odd = not isinstance(image, np.ndarray) or image.dtype != np.uint8
            if odd or image.ndim != 3 or image.shape[2] != channels:
                raise UserError(f"images: a list holds uint8 arrays of shape (H, W, {channels})")
        at = self._coordinates(len(images), "cpu", epoch, index)
        height, width = torch.tensor([image.shape[:2] for image in images]).T
        crops, mirrored = [], []
        for view, group in expand(self.groups):
            boxes, flips = boxes_and_flips(group, at.uniform(view, CROP_DRAWS), height, width)
            cut = [resize(i, b, group.size) for i, b in zip(images, boxes.tolist(), strict=True)]
            crops.append(torch.from_numpy(np.stack(cut)).permute(0, 3, 1, 2))
            mirrored.append(flips)
        return finish_crops(crops, torch.stack(mirrored), self.groups, at, self.normalization)


def _scaled(group: ViewGroup, size: int, largest: int) -> ViewGroup:
    """The group with its sides times size / largest."""
    height, width = (max(1, round(size * side / largest)) for side in group.sides)
    return group.model_copy(update={"size": height if height == width else (height, width)})
