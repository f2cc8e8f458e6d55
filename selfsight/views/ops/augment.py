"""Batched augmentations as pure functions, with one parameter per image.

Images are (B, C, H, W) float32 in [0, 1] unless said otherwise, on any device. Parameters are
tensors (B,), drawn in `views.make`. With equal parameters each op gives the result of the function
of the same name in torchvision.transforms.v2.functional.

Colour ops take `Planes`, separate channels, so that a compiled view is one loop over pixels.

An op that applies only to some images takes a mask (B,). The CPU computes those images alone. Other
devices compute all images and select, since picking rows would make the host wait for the device.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from selfsight.batch import sides

GRAY = (0.2989, 0.587, 0.114)  # the luma weights of ITU-R 601, as torchvision rounds them
CROP_TRIES = 10  # of a random crop before it falls back to the centre, as in torchvision
CROP_SLOTS = 2 * CROP_TRIES + 2  # uniform numbers for one crop
WHITE = {torch.uint8: 255, torch.uint16: 65535}  # the value that is 1 in [0, 1]

Planes = Sequence[Tensor]  # the channels, such as red, green and blue, each (B, 1, H, W)

_PICK_ROWS_ON = {"cpu"}  # device types where an op computes only the images of its mask


def picks_rows(x: Tensor) -> bool:
    """Whether an op computes only the images of its mask."""
    return x.device.type in _PICK_ROWS_ON and not torch.compiler.is_compiling()


def where(mask: Tensor, op: Callable[..., Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
    """op(x, *parameters) for the images of the mask, x for the others. May write into x.

    Args:
        mask: (B,) bool.
        parameters: tensors whose first dimension is B.
    """
    return where_planes(mask, lambda planes, *p: [op(*planes, *p)], [x], *parameters)[0]


def where_planes(
    mask: Tensor, op: Callable[..., Planes], planes: Planes, *parameters: Tensor
) -> Planes:
    """The same as `where`, for an op on planes."""
    if not picks_rows(mask):
        mask = mask.view(-1, 1, 1, 1)
        changed = op(planes, *parameters)
        return [torch.where(mask, a, b) for a, b in zip(changed, planes, strict=True)]
    rows = mask.nonzero().squeeze(1)
    if len(rows) == len(mask):
        return op(planes, *parameters)
    if len(rows) == 0:
        return planes
    changed = op([p[rows] for p in planes], *(p[rows] for p in parameters))
    return [p.index_copy_(0, rows, c) for p, c in zip(planes, changed, strict=True)]


def as_floats(pixels: Tensor) -> Tensor:
    """(B, C, H, W) uint8 or uint16 -> float32 in [0, 1]."""
    x = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    return x.div_(WHITE[pixels.dtype])


# Geometry -----------------------------------------------------------------------------------------


def crop_boxes(
    u: Tensor,
    height: Tensor | int,
    width: Tensor | int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    otherwise: tuple[int, int] | None = None,
) -> Tensor:
    """Random crops as in Inception: area uniform in `scale`, log aspect ratio uniform in `ratio`.

    The first of ten draws that fits into the image is used. The distribution is that of
    torchvision's RandomResizedCrop.

    Args:
        u: (B, CROP_SLOTS) uniform numbers in [0, 1).
        height, width: in pixels, of all images, or (B,) of each.
        scale: bounds of the crop's area as a fraction of the image's.
        ratio: bounds of width / height.
        otherwise: height and width of the centred box that is used if none of the ten fits; by
            default the largest one with a permitted ratio.
    Returns: (B, 4) int64: top, left, height, width.
    """
    device = u.device  # float32 would round some pixels wrongly, and MPS has no float64
    u = (u.cpu() if device.type == "mps" else u).double()
    height, width = (
        side.to(u)[:, None] if isinstance(side, Tensor) else u.new_full((1, 1), side)
        for side in (height, width)
    )
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[:, :CROP_TRIES])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * u[:, CROP_TRIES : 2 * CROP_TRIES])
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()  # (B, tries)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first, found = fits.int().argmax(1, keepdim=True), fits.any(1, keepdim=True)
    tallest, widest = otherwise or (
        torch.minimum(height, width / ratio[0]).round(),
        torch.minimum(width, height * ratio[1]).round(),
    )
    h = torch.where(found, h.gather(1, first), tallest)  # (B, 1)
    w = torch.where(found, w.gather(1, first), widest)
    top = torch.where(found, u[:, -2:-1] * (height - h + 1), (height - h) / 2).floor()
    left = torch.where(found, u[:, -1:] * (width - w + 1), (width - w) / 2).floor()
    return torch.cat([top, left, h, w], dim=1).long().to(device)


def _resize_matrix(
    start: Tensor, length: Tensor, source: int, size: int, flip: Tensor | None
) -> Tensor:
    """(B, size, source): row i contains the weights of all source pixels for output pixel i.

    Antialiased linear interpolation within [start, start + length). The weights are a triangle
    whose half-width is one source or one output pixel, whichever is larger, normalised to sum 1
    over the pixels inside the crop.
    """
    start, length = start.float()[:, None, None], length.float()[:, None, None]
    out = torch.arange(size, device=start.device, dtype=torch.float32)[None, :, None]
    if flip is not None:
        out = torch.where(flip[:, None, None], size - 1 - out, out)
    step = length / size
    pixel = torch.arange(source, device=start.device, dtype=torch.float32) + 0.5
    distance = (pixel - start - (out + 0.5) * step).abs()  # (B, size, source)
    weight = (1 - distance / step.clamp(min=1.0)).clamp_(min=0.0)
    weight *= (pixel > start) & (pixel < start + length)
    return weight / weight.sum(2, keepdim=True)


def resized_crop(
    images: Tensor, boxes: Tensor, size: int | Sequence[int], flip: Tensor | None = None
) -> Tensor:
    """Crop, resize with antialiasing, and mirror, in two batched matrix products.

    Args:
        images: (B, C, H, W) uint8 or uint16, or float in [0, 1].
        boxes: (B, 4) top, left, height, width in pixels, inside the image.
        size: side of the square output in pixels, or (h, w).
        flip: (B,) bool, the images to mirror left to right; None: no image.
    Returns: (B, C, h, w) float32 in [0, 1].
    """
    h, w = images.shape[2:]
    down, across = sides(size)
    top, left, height, width = boxes.unbind(1)
    rows = _resize_matrix(top, height, h, down, None)  # (B, h, H)
    columns = _resize_matrix(left, width, w, across, flip)  # (B, w, W)
    if images.dtype in WHITE:
        rows = rows * (1 / WHITE[images.dtype])
    return _separable(images, rows, columns)


def _separable(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows @ x @ columns^T for each channel, in two batched products.

    Args:
        rows: (B, h, H). columns: (B, w, W).
    Returns: (B, C, h, w).
    """
    b, c, height, width = x.shape
    x = x.transpose(1, 2).contiguous().float()  # (B, H, C, W): one product for all channels
    x = torch.bmm(x.view(b, -1, width), columns.transpose(1, 2))  # (B, H * C, w)
    x = torch.bmm(rows, x.view(b, height, -1))  # (B, h, C * w)
    return x.view(b, rows.shape[1], c, -1).transpose(1, 2).contiguous()


def rotate90(x: Tensor, turns: Tensor) -> Tensor:
    """Turn square images counter-clockwise by 90 degrees, `turns` times; exact. May write into x.

    Args:
        turns: (B,) integers from 0 to 3.
    """
    for k in (1, 2, 3):
        x = where(turns == k, functools.partial(torch.rot90, k=k, dims=(2, 3)), x)
    return x


def affine(x: Tensor, angle: Tensor, shift: Tensor, zoom: Tensor, shear: Tensor) -> Tensor:
    """Rotate, scale and shear about the centre, then translate; bilinear, black outside.

    Args:
        angle: (B,) degrees, clockwise.
        shift: (B, 2) to the right and down, in fractions of width and height.
        zoom: (B,) factor, > 1 enlarges.
        shear: (B,) degrees, along x.
    """
    angle, shear = torch.deg2rad(angle), torch.deg2rad(shear)
    cos, sin, tan = angle.cos() / zoom, angle.sin() / zoom, shear.tan()
    right, down = (2 * shift).unbind(1)  # a side is 2 long
    # grid_sample needs the source of each output pixel: the inverse of rotation * shear * zoom.
    a, b, c, d = cos - tan * sin, sin + tan * cos, -sin, cos
    b, c = b * (x.shape[2] / x.shape[3]), c * (x.shape[3] / x.shape[2])  # both sides are 2 long
    rows = [a, b, -a * right - b * down, c, d, -c * right - d * down]
    theta = torch.stack(rows, 1).view(-1, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    return torch.nn.functional.grid_sample(x, grid, "bilinear", "zeros", align_corners=False)


# Colour -------------------------------------------------------------------------------------------


def luma(planes: Planes) -> Tensor:
    """The brightness of each pixel, (B, 1, H, W); of other than three channels, their mean."""
    if len(planes) != 3:
        return torch.stack(tuple(planes)).mean(0)
    r, g, b = GRAY
    return torch.mul(planes[0], r).add_(planes[1], alpha=g).add_(planes[2], alpha=b)


def join(planes: Planes) -> Tensor:
    """C planes (B, 1, H, W) -> (B, C, H, W)."""
    if picks_rows(planes[0]):
        return torch.cat(planes, 1)
    # In the memory order that `_separable` needs. Not on the CPU, where copies of rows are slow.
    return torch.cat([p.transpose(1, 2) for p in planes], 2).transpose(1, 2)


def grayscale(planes: Planes) -> Planes:
    """Luma in all channels."""
    return [luma(planes)] * len(planes)


def gain(x: Tensor, factor: Tensor) -> Tensor:
    """clamp(factor * x), with a factor (B, C) for each channel."""
    return (x * factor[:, :, None, None]).clamp_(0, 1)


def add_noise(x: Tensor, numbers: Tensor, std: float) -> Tensor:
    """clamp(x + std * numbers), numbers of the shape of x, standard normal."""
    return x.add(numbers, alpha=std).clamp_(0, 1)


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Gaussian blur with mirrored borders, in two batched matrix products.

    Args:
        sigma: (B,) standard deviation in pixels, > 0.
        kernel: odd width of the truncated kernel in pixels, below twice the side.
    """
    h, w = x.shape[2:]
    rows = _blur_matrix(sigma, kernel, h)
    columns = rows if h == w else _blur_matrix(sigma, kernel, w)
    return _separable(x, rows, columns)


def _blur_matrix(sigma: Tensor, kernel: int, size: int) -> Tensor:
    """(B, size, size): row i contains the weights of all pixels j for pixel i.

    The weight of a pixel outside the image is added to that of its mirror image inside. So pixel j
    gets the weights at the distances i - j, i + j (mirrored at the first pixel) and
    2 (size - 1) - i - j (mirrored at the last).
    """
    last, reach = size - 1, min(kernel // 2, size - 1)
    distance = torch.arange(-last, 2 * last + 1, device=sigma.device)
    weight = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2).where(distance.abs() <= reach, 0.0)
    weight = weight.unfold(1, size, 1)  # (B, 2 * size - 1, size): row k begins at distance k - last
    j = torch.arange(size, device=sigma.device)
    matrix = weight[:, :size].flip(1)
    matrix += weight[:, last:] * (j > 0)  # the first pixel is its own image
    matrix += weight[:, last:].flip(1, 2) * (j < last)
    return matrix / matrix.sum(2, keepdim=True)


def solarize(x: Tensor, threshold: float) -> Tensor:
    """Invert values at or above the threshold, which is in [0, 1]."""
    return torch.where(x >= threshold, 1 - x, x)


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x - mean) / std per channel. Raises: ValueError for another number of channels."""
    channels = x.shape[1]
    if not channels == len(mean) == len(std):
        raise ValueError(f"{channels} channels, and {len(mean)} means and {len(std)} deviations")
    channel = torch.arange(channels, device=x.device).view(1, channels, 1, 1)

    def constant(values: tuple[float, ...]) -> Tensor | float:  # made on x's device: no copy
        *others, found = values
        for n, value in reversed(list(enumerate(others))):
            found = torch.where(channel == n, value, found)
        return found

    return (x - constant(mean)).div_(constant(std))
