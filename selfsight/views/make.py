"""Make views of a batch of images: draw their parameters, then apply batched operations.

Images of one size are cropped in batches by `make_views`. Photographs are cropped while they are
decoded, with the boxes of `boxes_and_flips`, and `finish_crops` applies the other steps.
"""

import functools
import math
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from selfsight import randomness
from selfsight.batch import MOST_CHANNELS, Normalization, SampleKey
from selfsight.compiler import can_compile
from selfsight.views.ops import augment, randaugment
from selfsight.views.ops.jitter import color_jitter
from selfsight.views.recipe import ViewGroup

Compile = Literal["auto"] | bool


class Slot(IntEnum):
    """The use of each of a view's uniform numbers."""

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
    TURN = RAND_AUGMENT + randaugment.MOST_OPS * randaugment.OP_SLOTS
    QUARTERS, GAIN = range(TURN + 1, TURN + 3)  # ... a number for each channel


CROP_DRAWS = Slot.FLIP + 1  # how many numbers crop and flip use, the first of the view
SLOTS = Slot.GAIN + MOST_CHANNELS
# The numbers of a pixel's noise come this far behind those of erased boxes, in the same stream.
NOISE = 2**40
# Values of a chunk on the CPU: larger chunks do not fit the cache, smaller ones cost Python time.
CHUNK = 2**20


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
    """The only draw of a view's crop: boxes (B, 4) in pixels and flips (B,) bool.

    Args:
        u: (B, CROP_DRAWS or more) the view's uniform numbers.
        height, width: in pixels, of all images, or (B,) of each.
    """
    boxes = augment.crop_boxes(
        u[:, : augment.CROP_SLOTS], height, width, group.crop_scale, group.crop_ratio
    )
    return boxes, u[:, Slot.FLIP] < group.flip


class ViewSpec(NamedTuple):
    """What is the same for a view in every step; a compiled function exists for each."""

    group: ViewGroup
    normalization: Normalization


def make_views(
    images: Tensor,
    groups: list[ViewGroup],
    at: SampleKey,
    normalization: Normalization,
    compile: Compile = "auto",
) -> list[Tensor]:
    """All views of a batch of images of one size.

    Args:
        images: (B, C, H, W) uint8 or uint16.
        compile: compile each view to a few fused kernels; "auto": only on GPUs.
    Returns: for each view (B, C, h, w) float32, normalised, channels last in memory.
    """
    views = expand(groups)
    return [_view(images, ViewSpec(group, normalization), at, v, compile) for v, group in views]


def finish_crops(
    crops: list[Tensor],
    flips: Tensor,
    groups: list[ViewGroup],
    at: SampleKey,
    normalization: Normalization,
    compile: Compile = "auto",
) -> list[Tensor]:
    """The same as `make_views`, for images that were cropped while they were decoded.

    Args:
        crops: for each view (B, C, h, w) uint8 or uint16, not yet mirrored.
        flips: (V, B) bool, the crops to mirror: the second result of `boxes_and_flips`.
    """
    views = zip(expand(groups), crops, flips, strict=True)
    return [
        _view(x, ViewSpec(group, normalization), at, v, compile, flip)
        for (v, group), x, flip in views
    ]


def _view(
    pixels: Tensor,
    spec: ViewSpec,
    at: SampleKey,
    view: int,
    compile: Compile,
    flips: Tensor | None = None,
) -> Tensor:
    """One view: compiled as a whole, or step by step (on the CPU in chunks of images)."""
    stream = at.stream(view, randomness.ERASE)
    wanted = compile is True or (compile == "auto" and pixels.device.type == "cuda")
    if wanted and can_compile(pixels.device.type):
        draw, steps = _compiled()
        u = draw(at.index, at.stream(view), SLOTS)
        return steps(pixels, spec, u, at.index, stream, flips)
    u = at.uniform(view, SLOTS)
    n, shape = len(pixels), (pixels.shape[1], *spec.group.sides)
    out = torch.empty((n, *shape), device=pixels.device, memory_format=torch.channels_last)
    step = max(1, CHUNK // math.prod(shape)) if pixels.device.type == "cpu" else n
    for start in range(0, n, step):
        rows = slice(start, start + step)
        flip = None if flips is None else flips[rows]
        out[rows] = _steps(pixels[rows], spec, u[rows], at.index[rows], stream, flip)
    return out


@functools.cache
def _compiled() -> list[Callable[..., Tensor]]:
    """The compiled draw and the compiled steps of a view.

    They are two functions: fused into one, the numbers would be drawn again for every pixel.
    """

    def steps(*arguments: Tensor | ViewSpec | None) -> Tensor:
        return _steps(*arguments).contiguous(memory_format=torch.channels_last)

    functions = randomness.numbers, steps
    return [torch.compile(f, dynamic=False, options=compiler_options()) for f in functions]


def compiler_options() -> dict[str, int]:
    """Options of inductor with which torch.cat needs no kernel of its own."""
    names = ("max_pointwise_cat_inputs", "max_complex_pointwise_cat_inputs")
    return {name: 0 for name in names if name in torch._inductor.list_options()}


def _steps(
    pixels: Tensor,
    spec: ViewSpec,
    u: Tensor,
    index: Tensor,
    stream: Tensor,
    flips: Tensor | None = None,
) -> Tensor:
    """All steps of a view. On a GPU the host never waits for a result.

    Args:
        pixels: (B, C, H, W) uint8 or uint16.
        u: (B, SLOTS) the view's uniform numbers.
        index, stream: (B,) image indices and () the key of the numbers that each pixel has.
        flips: (B,) bool, if the pixels are crops already; None: crop and mirror whole images here.
    Returns: (B, C, h, w) float32, normalised.
    """
    group = spec.group
    if flips is None:
        boxes, flips = boxes_and_flips(group, u, *pixels.shape[2:])
        x = augment.resized_crop(pixels, boxes, group.sides, flips)
    else:
        x = augment.where(flips, lambda x: x.flip(3), augment.as_floats(pixels))
    if group.rotate90:
        quarters = 1 + (3 * u[:, Slot.QUARTERS]).long()
        x = augment.rotate90(x, quarters.where(u[:, Slot.TURN] < group.rotate90, 0))
    if group.rand_augment:
        numbers = u[:, Slot.RAND_AUGMENT :][:, : group.rand_augment * randaugment.OP_SLOTS]
        strength = group.rand_magnitude, group.rand_magnitude_std
        x = randaugment.rand_augment(x, numbers, *strength, fill=spec.normalization.mean)
    x = _distort(x, group, u)
    if group.noise:
        added = noise(index, stream, x[0].numel(), NOISE).view_as(x)
        x = augment.add_noise(x, added, group.noise)
    x = augment.normalize(x, *spec.normalization)
    return _erase(x, group, u, index, stream) if group.erase else x


def _distort(x: Tensor, group: ViewGroup, u: Tensor) -> Tensor:
    """The steps from affine to solarize. Writes into x."""
    if group.affine:
        x = augment.where(u[:, Slot.AFFINE] < group.affine, augment.affine, x, *_affine(group, u))
    planes = x.split(1, 1)
    if group.jitter:
        mask = u[:, Slot.JITTER] < group.jitter
        planes = augment.where_planes(mask, color_jitter, planes, *_jitter(group, u))
    if group.grayscale:
        mask = u[:, Slot.GRAYSCALE] < group.grayscale
        planes = augment.where_planes(mask, augment.grayscale, planes)
    if group.jitter or group.grayscale:
        x = augment.join(planes)
    if group.gain:
        numbers = u[:, Slot.GAIN : Slot.GAIN + x.shape[1]]
        x = augment.gain(x, _between(numbers, 1 - group.gain, 1 + group.gain))
    if group.blur:
        sigma = _between(u[:, Slot.SIGMA], *group.blur_sigma)
        blur = partial(augment.gaussian_blur, kernel=group.kernel)
        x = augment.where(u[:, Slot.BLUR] < group.blur, blur, x, sigma)
    if group.solarize:
        solarize = partial(augment.solarize, threshold=group.solarize_threshold)
        x = augment.where(u[:, Slot.SOLARIZE] < group.solarize, solarize, x)
    return x


def _erase(x: Tensor, group: ViewGroup, u: Tensor, index: Tensor, stream: Tensor) -> Tensor:
    def fill(x: Tensor, boxes: Tensor, index: Tensor) -> Tensor:
        return randaugment.erase(x, boxes, noise(index, stream, x[0].numel()).view_as(x))

    numbers = u[:, Slot.ERASE_BOX :][:, : augment.CROP_SLOTS]
    boxes = randaugment.erase_boxes(numbers, x.shape[2:], group.erase_area, group.erase_ratio)
    return augment.where(u[:, Slot.ERASE] < group.erase, fill, x, boxes, index)


def noise(index: Tensor, stream: Tensor, count: int, first: int = 0) -> Tensor:
    """(B, count) standard normal numbers for the pixels of a view.

    Args:
        first: the first of the stream's numbers that they are made of.
    """
    u = randomness.numbers(index, stream, count + count % 2, first)  # they come in pairs
    return randaugment.normals(u)[:, :count]


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


def _affine(group: ViewGroup, u: Tensor) -> tuple[Tensor, ...]:
    """Angle, shift, zoom and shear of each image, as `augment.affine` takes them."""
    angle = _between(u[:, Slot.ROTATION], -group.rotation, group.rotation)
    shift = _between(u[:, Slot.RIGHT : Slot.DOWN + 1], -group.translation, group.translation)
    zoom = _between(u[:, Slot.ZOOM], *map(math.log, group.zoom)).exp()
    return angle, shift, zoom, _between(u[:, Slot.SHEAR], -group.shear, group.shear)


def _jitter(group: ViewGroup, u: Tensor) -> tuple[Tensor, ...]:
    """Brightness, contrast, saturation and hue of each image, and their places in its order."""
    strengths = (group.brightness, group.contrast, group.saturation)
    factors = [
        _between(u[:, slot], max(0.0, 1 - strength), 1 + strength)
        for slot, strength in enumerate(strengths, Slot.BRIGHTNESS)
    ]
    hue = _between(u[:, Slot.HUE], -group.hue, group.hue)
    return *factors, hue, *_ranks(u[:, Slot.ORDER : Slot.ORDER + 4])


def _ranks(u: Tensor) -> list[Tensor]:
    """For each column (B,) the rank of its number in the row, from 0; of equals the left is first.

    A sort would do the same, but would not become part of the compiled loop.
    """
    columns = u.unbind(1)
    return [
        sum(a <= b if j < i else a < b for j, a in enumerate(columns) if j != i)
        for i, b in enumerate(columns)
    ]
