"""RandAugment and random erasing, in batches; fine-tuning uses them after crop and flip.

RandAugment (Cubuk et al., arXiv 1909.13719) as timm's `rand-m9-mstd0.5-inc1` defines it: each of n
operations is drawn uniformly from fifteen and applied with probability 1/2, with a magnitude in
[0, 10] to which each image and operation adds its own noise. Random erasing (Zhong et al., arXiv
1708.04896) as timm's mode 'pixel'.

timm's own code is not used: it draws from the global generators of Python and NumPy, one image at a
time. Views would then depend on more than their coordinates, and nothing could run in batches.

The fifteen operations are three batched maps with parameters for each image: a table of the 256
levels, a blend with another image, and an affine map. Images are (B, 3, s, s) float32 in [0, 1].
Operations that are defined on 8-bit levels round to them, the others do not. If the last bit of a
crop differs, a pixel midway between two levels may therefore be rounded up or down.
"""

import math
from collections.abc import Sequence
from enum import IntEnum
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.batch import sides
from selfsight.views.ops import augment


class Op(IntEnum):
    """timm's fifteen "increasing" operations, sorted by the three maps that implement them."""

    NONE = -1
    AUTO_CONTRAST, EQUALIZE, INVERT, POSTERIZE, SOLARIZE, SOLARIZE_ADD = range(6)
    COLOR, CONTRAST, BRIGHTNESS, SHARPNESS = range(6, 10)
    ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y = range(10, 15)


OPS = len(Op) - 1  # NONE is not drawn
CHANCE = 0.5  # that an operation drawn is applied
STRONGEST = 10.0  # magnitude
MOST_OPS = 4  # operations of one view
OP_SLOTS = 5  # uniform numbers for one operation

# At the strongest magnitude:
BLEND = 0.9  # change of the blend's factor from 1, which leaves the image unchanged
DEGREES = 30.0
SHEAR = 0.3  # pixels to the side for each pixel down
SHIFT = 0.45  # of the side
BITS = 4  # removed by posterize, beyond the four that it always removes
ADDED = 110  # levels added by solarize-add


def rand_augment(
    x: Tensor, u: Tensor, magnitude: float, std: float, fill: tuple[float, ...]
) -> Tensor:
    """n operations on each image, in sequence. May write into x.

    Args:
        u: (B, n * OP_SLOTS) uniform numbers in [0, 1).
        magnitude, std: mean and standard deviation of the magnitudes before they are clipped.
        fill: colour in [0, 1] of pixels that an affine map takes from outside the image.
    """
    for numbers in u.split(OP_SLOTS, dim=1):
        x = apply(x, *draw(numbers, magnitude, std), fill)
    return x


def draw(u: Tensor, magnitude: float, std: float) -> tuple[Tensor, Tensor, Tensor]:
    """The operation of each image: kind, magnitude in [0, 10], and sign.

    Args:
        u: (B, OP_SLOTS) uniform numbers in [0, 1).
    Returns: (B,) int64, (B,) float32, (B,) float32 of -1 and 1.
    """
    chance, kind, sign, *noise = u.unbind(1)
    op = torch.where(chance < CHANCE, (OPS * kind).long(), int(Op.NONE))
    noisy = magnitude + std * normals(torch.stack(noise, 1))[:, 0]
    return op, noisy.clamp(0, STRONGEST), torch.where(sign < 0.5, -1.0, 1.0)


def apply(
    x: Tensor, op: Tensor, magnitude: Tensor, sign: Tensor, fill: tuple[float, ...]
) -> Tensor:
    """One operation on each image; Op.NONE leaves it unchanged. May write into x.

    Args:
        op: (B,) int64, members of Op.
        magnitude: (B,) in [0, 10]. sign: (B,), -1 or 1, for operations with two directions.
        fill: as for `rand_augment`.
    """
    table = (op >= int(Op.AUTO_CONTRAST)) & (op <= int(Op.SOLARIZE_ADD))
    blend = (op >= int(Op.COLOR)) & (op <= int(Op.SHARPNESS))
    amount = sign * magnitude / STRONGEST
    x = augment.where(table, _look_up, x, op, magnitude / STRONGEST)
    x = augment.where(blend, _blend, x, op, 1 + BLEND * amount)
    return augment.where(op >= int(Op.ROTATE), partial(_warp, fill=fill), x, op, amount)


# Tables of levels ---------------------------------------------------------------------------------


def _look_up(x: Tensor, op: Tensor, strength: Tensor) -> Tensor:
    """Replace each level of each channel by that of a table; strength (B,) in [0, 1]."""
    levels = (x * 255).round().long().flatten(2)  # (B, 3, s * s)
    table = _tables(levels, op.view(-1, 1, 1), strength.view(-1, 1, 1))
    return (table / 255).gather(2, levels).view_as(x)


def _tables(levels: Tensor, op: Tensor, strength: Tensor) -> Tensor:
    """(B, 3, 256) int64, the new value of each level; op and strength are (B, 1, 1)."""
    level = torch.arange(256, device=levels.device)
    posterize = level - level % (1 << (4 + (BITS * strength).long()))
    threshold = 256 - (256 * strength).long()
    added = (ADDED * strength).long()
    tables = {
        Op.AUTO_CONTRAST: _stretched(levels, level),
        Op.EQUALIZE: _equalized(levels, level),
        Op.INVERT: 255 - level,
        Op.POSTERIZE: posterize,
        Op.SOLARIZE: torch.where(level < threshold, level, 255 - level),
        Op.SOLARIZE_ADD: torch.where(level < 128, level + added, level),
    }
    table = level.expand(*levels.shape[:2], 256)
    for kind, other in tables.items():
        table = torch.where(op == int(kind), other, table)
    return table


def _stretched(levels: Tensor, level: Tensor) -> Tensor:
    """The darkest level of a channel becomes 0, the brightest 255; a flat channel stays."""
    low, high = levels.amin(2, keepdim=True), levels.amax(2, keepdim=True)
    stretched = (255 * (level - low) // (high - low).clamp(min=1)).clamp(0, 255)
    return torch.where(high > low, stretched, level)


def _equalized(levels: Tensor, level: Tensor) -> Tensor:
    """Histogram equalisation as PIL.ImageOps.equalize: (step / 2 + number of darker pixels) / step,
    where step is the number of pixels below the brightest level / 255."""
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.int64, device=levels.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255  # (B, 3, 1)
    darker = counts.cumsum(2) - counts
    equalized = ((step // 2 + darker) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, equalized, level)


# Blends -------------------------------------------------------------------------------------------


def _blend(x: Tensor, op: Tensor, factor: Tensor) -> Tensor:
    """clamp(factor * x + (1 - factor) * plain), where plain is the luma of each pixel (colour), the
    mean luma (contrast), black (brightness) or the smoothed image (sharpness)."""
    op, factor = op.view(-1, 1, 1, 1), factor.view(-1, 1, 1, 1)
    luma = augment.luma(x.split(1, 1))
    plain = torch.where(op == int(Op.CONTRAST), luma.mean((2, 3), keepdim=True), 0.0)
    plain = torch.where(op == int(Op.COLOR), luma, plain)  # (B, 1, s, s)
    plain = torch.where(op == int(Op.SHARPNESS), _smoothed(x), plain)
    return torch.lerp(plain, x, factor).clamp_(0, 1)


def _smoothed(x: Tensor) -> Tensor:
    """(5 * pixel + its eight neighbours) / 13; border pixels are unchanged, as in PIL."""
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    smoothed = x.clone()
    smoothed[inner] = ((9 * F.avg_pool2d(x, 3, 1, padding=1) + 4 * x) / 13)[inner]
    return smoothed


# Affine maps --------------------------------------------------------------------------------------


def _warp(x: Tensor, op: Tensor, amount: Tensor, fill: tuple[float, ...]) -> Tensor:
    """Rotate about the centre, shear along the upper or the left edge, or translate; bilinear.

    A pixel whose source lies outside the image gets the fill.
    differs: timm in MAE's fine-tuning interpolates bicubically.
    """

    def of(kind: Op, strongest: float) -> Tensor:
        return torch.where(op == int(kind), strongest * amount, 0.0)

    angle = of(Op.ROTATE, math.radians(DEGREES))
    cos, sin = angle.cos(), angle.sin()
    across, down = of(Op.SHEAR_X, SHEAR), of(Op.SHEAR_Y, SHEAR)
    # The source of each output pixel in coordinates from -1 to 1, so the side has length 2.
    right, below = of(Op.TRANSLATE_X, 2 * SHIFT), of(Op.TRANSLATE_Y, 2 * SHIFT)
    tall, wide = x.shape[2] / x.shape[3], x.shape[3] / x.shape[2]  # both sides have length 2
    rows = (
        [cos, (across - sin) * tall, across * tall + right],
        [(down + sin) * wide, cos, down * wide + below],
    )
    source = torch.stack([torch.stack(row, 1) for row in rows], 1)  # (B, 2, 3)
    grid = F.affine_grid(source, list(x.shape), align_corners=False)
    inside = (grid.abs() < 1).all(3)  # (B, s, s)
    # the centre of the last pixel: nothing outside is mixed in
    right, below = 1 - 1 / x.shape[3], 1 - 1 / x.shape[2]
    columns, rows = (at.clamp(-e, e) for at, e in zip(grid.unbind(3), (right, below), strict=True))
    near = torch.stack([columns, rows], 3)
    pixels = F.grid_sample(x, near, "bilinear", align_corners=False)
    return torch.stack([torch.where(inside, pixels[:, c], f) for c, f in enumerate(fill)], 1)


# Random erasing -----------------------------------------------------------------------------------


def erase_boxes(
    u: Tensor,
    size: int | Sequence[int],
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> Tensor:
    """Boxes to erase: area uniform, log aspect ratio uniform, the first of ten draws that fits.

    Args:
        u: (B, augment.CROP_SLOTS) uniform numbers in [0, 1).
        size: side of the image in pixels, or height and width.
        area: bounds of the box's area as a fraction of the image's. ratio: of width / height.
    Returns: (B, 4) int64: top, left, height, width; height and width 0 where no draw fits.
    """
    height, width = sides(size)
    return augment.crop_boxes(u, height, width, area, ratio, (0, 0))


def erase(x: Tensor, boxes: Tensor, noise: Tensor) -> Tensor:
    """Replace the pixels in each image's box by noise.

    Args:
        x: (B, C, h, w), normalised.
        boxes: (B, 4) top, left, height, width in pixels.
        noise: (B, C, h, w) of mean 0 and variance 1, about those of normalised pixels.
    """
    top, left, height, width = boxes[:, :, None].unbind(1)  # (B, 1)
    row, column = (torch.arange(side, device=x.device) for side in x.shape[2:])
    rows = (row >= top) & (row < top + height)  # (B, h)
    columns = (column >= left) & (column < left + width)  # (B, w)
    return torch.where((rows[:, :, None] & columns[:, None])[:, None], noise, x)


def normals(u: Tensor) -> Tensor:
    """Independent standard normal numbers, one per uniform number (Box and Muller, 1958).

    Args:
        u: (B, 2 n) in [0, 1), multiples of 2^-24 so that 1 - u is exact and not 0.
    """
    radius, turn = u.chunk(2, dim=1)
    radius = (-2 * (1 - radius).log()).sqrt()
    return torch.cat([radius * (2 * math.pi * turn).cos(), radius * (2 * math.pi * turn).sin()], 1)
