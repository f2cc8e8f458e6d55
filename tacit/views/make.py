"""From a batch of images and its coordinates to views: draw the parameters, then apply batched ops.

`boxes_and_flips` says where to crop, `finish` does what runs on whole batches of equal size. Small
data of one size goes through both in `make_views`; photographs are cropped where they are decoded,
and `finish_crops` does the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

from tacit import augment, randaugment, randomness
from tacit.views.recipe import ViewGroup


class Slot(IntEnum):
    """Which of a view's uniform numbers decides what."""

    CROP = 0  # ... CROP_SLOTS numbers
    FLIP = augment.CROP_SLOTS
    AFFINE, ROTATION, RIGHT, DOWN, ZOOM, SHEAR = range(FLIP + 1, FLIP + 7)
    JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE = range(SHEAR + 1, SHEAR + 6)
    ORDER = HUE + 1  # ... 4 numbers
    GRAYSCALE = ORDER + 4
    BLUR, SIGMA, SOLARIZE = range(GRAYSCALE + 1, GRAYSCALE + 4)
    ERASE = SOLARIZE + 1
    ERASE_BOX = ERASE + 1  # ... CROP_SLOTS numbers
    RAND_AUGMENT = ERASE_BOX + augment.CROP_SLOTS  # ... OP_SLOTS numbers for each operation


SLOTS = Slot.RAND_AUGMENT + randaugment.MOST_OPS * randaugment.OP_SLOTS
CHUNK = (
    2**20
)  # values at a time on the CPU: larger chunks leave the cache, smaller ones wait for Python


@dataclass(frozen=True)
class Coordinates:
    """Where a batch stands: all randomness of its views follows from this."""

    seed: int
    epoch: int
    index: Tensor  # (B,) int64, each image's index in its source

    def draws(self, view: int) -> Tensor:
        """(B, SLOTS) uniform numbers of one view."""
        return randomness.uniform(self.seed, self.epoch, self.index, view, SLOTS)

    def crop_draws(self, view: int) -> Tensor:
        """(B, FLIP + 1) the first of them: what a crop takes."""
        return randomness.uniform(self.seed, self.epoch, self.index, view, Slot.FLIP + 1)

    def noise(self, view: int, count: int) -> Tensor:
        """(B, count) standard normal numbers for the erased pixels of one view."""
        slots = count + count % 2  # they come in pairs
        u = randomness.uniform(self.seed, self.epoch, self.index, view, slots, randomness.ERASE)
        return randaugment.normals(u)[:, :count]

    def part(self, rows: slice) -> "Coordinates":
        """Those of some images of the batch."""
        return replace(self, index=self.index[rows])

    def mask_draws(self, view: int, slots: int) -> Tensor:
        """(B, slots) uniform numbers for the mask of one view."""
        return randomness.uniform(self.seed, self.epoch, self.index, view, slots, randomness.MASKS)


def expand(groups: list[ViewGroup]) -> Iterator[tuple[int, ViewGroup]]:
    """(view number, its group) for every view of the recipe."""
    view = 0
    for group in groups:
        for _ in range(group.count):
            yield view, group
            view += 1


def boxes_and_flips(
    group: ViewGroup, u: Tensor, height: Tensor | int, width: Tensor | int
) -> tuple[Tensor, Tensor]:
    """Where each image of (B,) is cropped, (B, 4), and whether it is mirrored, (B,) bool."""
    boxes = augment.crop_boxes(
        u[:, : augment.CROP_SLOTS], height, width, group.crop_scale, group.crop_ratio
    )
    return boxes, u[:, Slot.FLIP] < group.flip


def make_views(
    images: Tensor,
    groups: list[ViewGroup],
    at: Coordinates,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> list[Tensor]:
    """All views of a batch of equally large images.

    Args:
        images: (B, 3, H, W) uint8.
        mean, std: per channel, of images in [0, 1].
    Returns: for each view (B, 3, size, size) float32, normalised, channels last in memory.
    """
    views = []
    for view, group in expand(groups):
        u = at.draws(view)
        boxes, flips = boxes_and_flips(group, u, *images.shape[-2:])
        out = _empty(len(images), group.size, images.device)
        for rows in _chunks(out):
            x = augment.resized_crop(images[rows], boxes[rows], group.size, flips[rows])
            out[rows] = finish(x, group, u[rows], at.part(rows), view, mean, std)
        views.append(out)
    return views


def finish_crops(
    crops: list[Tensor],
    groups: list[ViewGroup],
    at: Coordinates,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> list[Tensor]:
    """As make_views, from crops cut while decoding: for each view (B, 3, size, size) uint8, not yet
    mirrored."""
    views = []
    for (view, group), crop in zip(expand(groups), crops, strict=True):
        u = at.draws(view)
        out = _empty(len(crop), group.size, crop.device)
        for rows in _chunks(out):
            x = crop[rows].float().div_(255)
            mirrored = u[rows, Slot.FLIP] < group.flip
            x = augment.where(mirrored, lambda x: x.flip(3), x)
            out[rows] = finish(x, group, u[rows], at.part(rows), view, mean, std)
        views.append(out)
    return views


def _empty(batch: int, size: int, device: torch.device) -> Tensor:
    shape = (batch, 3, size, size)
    return torch.empty(shape, device=device, memory_format=torch.channels_last)


def _chunks(out: Tensor) -> Iterator[slice]:
    n = len(out)
    step = max(1, CHUNK // out[0].numel()) if out.device.type == "cpu" else n
    for start in range(0, n, step):
        yield slice(start, start + step)


def finish(
    x: Tensor,
    group: ViewGroup,
    u: Tensor,
    at: Coordinates,
    view: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Tensor:
    """Everything after crop and flip; may write into x.

    Args:
        x: (B, 3, s, s) float32 in [0, 1].
        u: (B, SLOTS) the view's uniform numbers.
    Returns: (B, 3, s, s) float32, normalised.
    """
    if group.rand_augment:
        numbers = u[:, Slot.RAND_AUGMENT :][:, : group.rand_augment * randaugment.OP_SLOTS]
        strength = group.rand_magnitude, group.rand_magnitude_std
        x = randaugment.rand_augment(x, numbers, *strength, fill=mean)
    x = augment.normalize(_distort(x, group, u), mean, std)
    return _erase(x, group, u, at, view) if group.erase else x


def _distort(x: Tensor, group: ViewGroup, u: Tensor) -> Tensor:
    """The steps from affine to solarize; may write into x."""
    if group.affine:
        x = augment.where(u[:, Slot.AFFINE] < group.affine, augment.affine, x, *_affine(group, u))
    if group.jitter:
        mask = u[:, Slot.JITTER] < group.jitter
        x = augment.where(mask, augment.color_jitter, x, *_jitter(group, u))
    if group.grayscale:
        x = augment.where(u[:, Slot.GRAYSCALE] < group.grayscale, augment.grayscale, x)
    if group.blur:
        sigma = _between(u[:, Slot.SIGMA], *group.blur_sigma)
        mask = u[:, Slot.BLUR] < group.blur
        x = augment.where(mask, lambda x, s: augment.gaussian_blur(x, s, group.kernel), x, sigma)
    if group.solarize:
        mask = u[:, Slot.SOLARIZE] < group.solarize
        x = augment.where(mask, lambda x: augment.solarize(x, group.solarize_threshold), x)
    return x


def _erase(x: Tensor, group: ViewGroup, u: Tensor, at: Coordinates, view: int) -> Tensor:
    def fill(x: Tensor, boxes: Tensor, index: Tensor) -> Tensor:
        noise = replace(at, index=index).noise(view, x[0].numel())
        return randaugment.erase(x, boxes, noise.view_as(x))

    numbers = u[:, Slot.ERASE_BOX :][:, : augment.CROP_SLOTS]
    boxes = randaugment.erase_boxes(numbers, x.shape[-1], group.erase_area, group.erase_ratio)
    return augment.where(u[:, Slot.ERASE] < group.erase, fill, x, boxes, at.index)


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _affine(group: ViewGroup, u: Tensor) -> tuple[Tensor, ...]:
    """angle, shift, zoom, shear of each image."""
    angle = _between(u[:, Slot.ROTATION], -group.rotation, group.rotation)
    shift = _between(u[:, [Slot.RIGHT, Slot.DOWN]], -group.translation, group.translation)
    low, high = torch.tensor(group.zoom).log().tolist()
    zoom = _between(u[:, Slot.ZOOM], low, high).exp()
    return angle, shift, zoom, _between(u[:, Slot.SHEAR], -group.shear, group.shear)


def _jitter(group: ViewGroup, u: Tensor) -> tuple[Tensor, ...]:
    """brightness, contrast, saturation, hue and order of each image."""
    strengths = (group.brightness, group.contrast, group.saturation)
    factors = [
        _between(u[:, slot], max(0.0, 1 - strength), 1 + strength)
        for slot, strength in zip(
            (Slot.BRIGHTNESS, Slot.CONTRAST, Slot.SATURATION), strengths, strict=True
        )
    ]
    hue = _between(u[:, Slot.HUE], -group.hue, group.hue)
    return *factors, hue, u[:, Slot.ORDER : Slot.ORDER + 4].argsort(1)
