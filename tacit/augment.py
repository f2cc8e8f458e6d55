"""Batched augmentations: a few tensor lines each, pure, with one parameter per image.

Images are (B, 3, H, W) float32 in [0, 1] unless said otherwise, on any device. Parameters are (B,)
tensors; who draws them is `views`. With equal parameters each op equals its namesake of
torchvision.transforms.v2.functional.

An op that only some images get takes a (B,) mask. The CPU then works on those images alone; other
devices compute all and select, since picking rows would make the host wait for the device.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

GRAY = (0.2989, 0.587, 0.114)  # the luma weights of ITU-R 601, as torchvision rounds them
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
CROP_TRIES = 10  # of a random crop before it falls back to the centre, as in torchvision
CROP_SLOTS = 2 * CROP_TRIES + 2  # uniform numbers that one crop takes


_PICK_ROWS_ON = {"cpu"}  # device types where an op works on the rows of its mask alone


def where(mask: Tensor, op: Callable[..., Tensor], x: Tensor, *parameters: Tensor) -> Tensor:
    """op(x, *parameters) for the images of the mask, x for the others; may write into x.

    Args:
        mask: (B,) bool.
        parameters: tensors whose first dimension is B.
    """
    if x.device.type not in _PICK_ROWS_ON:
        return torch.where(mask.view(-1, 1, 1, 1), op(x, *parameters), x)
    rows = mask.nonzero().squeeze(1)
    if len(rows) == len(x):
        return op(x, *parameters)
    return x.index_copy_(0, rows, op(x[rows], *(p[rows] for p in parameters))) if len(rows) else x


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

    The first of ten draws that fits the image counts. The distribution is that of torchvision's
    RandomResizedCrop.

    Args:
        u: (B, CROP_SLOTS) uniform numbers in [0, 1).
        height, width: in pixels, of all images, or (B,) of each.
        scale: bounds of the crop's area as a fraction of the image's.
        ratio: bounds of width / height.
        otherwise: height and width of the centred box where none of the ten fits; by default the
            largest with a permitted ratio.
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
    """(B, size, source): row i holds the weights of the source pixels that make output pixel i.

    Antialiased linear interpolation within [start, start + length): a triangle whose half-width is
    the larger of one source and one output pixel, normalised over the pixels inside the crop.
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


def resized_crop(images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Crop, resize with antialiasing and flip in two batched matrix products.

    Args:
        images: (B, 3, H, W) uint8, or float in [0, 1].
        boxes: (B, 4) top, left, height, width in pixels, inside the image.
        size: side of the square output in pixels.
        flip: (B,) bool, mirrored left to right where true.
    Returns: (B, 3, size, size) float32 in [0, 1].
    """
    b, c, h, w = images.shape
    top, left, height, width = boxes.unbind(1)
    rows = _resize_matrix(top, height, h, size, None)  # (B, s, H)
    columns = _resize_matrix(left, width, w, size, flip)  # (B, s, W)
    if images.dtype == torch.uint8:
        rows = rows * (1 / 255)
    x = torch.bmm(images.float().view(b, c * h, w), columns.transpose(1, 2))  # (B, cH, s)
    rows = rows[:, None].expand(b, c, size, h).reshape(b * c, size, h)
    return torch.bmm(rows, x.view(b * c, h, size)).view(b, c, size, size)


def affine(x: Tensor, angle: Tensor, shift: Tensor, zoom: Tensor, shear: Tensor) -> Tensor:
    """Rotate, scale and shear about the centre, then translate; bilinear, black outside.

    Args:
        angle: (B,) degrees, clockwise.
        shift: (B, 2) to the right and down, in fractions of the side.
        zoom: (B,) factor, > 1 enlarges.
        shear: (B,) degrees, along x.
    """
    angle, shear = torch.deg2rad(angle), torch.deg2rad(shear)
    cos, sin, tan = angle.cos() / zoom, angle.sin() / zoom, shear.tan()
    # grid_sample asks where an output pixel comes from: the inverse of rotation * shear * zoom.
    unrotate = torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2)
    one, zero = torch.ones_like(tan), torch.zeros_like(tan)
    inverse = torch.stack([one, tan, zero, one], 1).view(-1, 2, 2) @ unrotate
    offset = -inverse @ (2 * shift)[:, :, None]
    grid = torch.nn.functional.affine_grid(
        torch.cat([inverse, offset], 2), list(x.shape), align_corners=False
    )
    return torch.nn.functional.grid_sample(x, grid, "bilinear", "zeros", align_corners=False)


# Colour -------------------------------------------------------------------------------------------


def luma(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    r, g, b = GRAY
    return torch.mul(x[:, 0:1], r).add_(x[:, 1:2], alpha=g).add_(x[:, 2:3], alpha=b)


def _blend(x: Tensor, factor: Tensor, to_luma: Tensor, to_mean: Tensor) -> Tensor:
    """clamp(factor * x + to_luma * luma(x) + to_mean * mean(luma(x))), parameters (B,).

    Brightness, contrast and saturation are this map with one of the last two, or both, at zero.
    """
    factor, to_luma, to_mean = (p.view(-1, 1, 1, 1) for p in (factor, to_luma, to_mean))
    gray = luma(x)
    offset = gray.mean((2, 3), keepdim=True) * to_mean
    return (x * factor).add_(gray.mul_(to_luma).add_(offset)).clamp_(0, 1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """clamp(factor * x)."""
    return _blend(x, factor, torch.zeros_like(factor), torch.zeros_like(factor))


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """clamp(factor * x + (1 - factor) * mean luma of the image)."""
    return _blend(x, factor, torch.zeros_like(factor), 1 - factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """clamp(factor * x + (1 - factor) * luma of each pixel)."""
    return _blend(x, factor, 1 - factor, torch.zeros_like(factor))


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV by `shift` of a full circle, value and chroma kept.

    Each channel is v - c * clamp(min(k, 4 - k), 0, 1) with k = (n + 6 h) mod 6 and n = 5, 3, 1 for
    red, green,
    blue: the closed form of the six cases of the usual conversion.
    """
    r, g, b = x.unbind(1)
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    scale = 1 / chroma.clamp(min=1e-12)
    hue = torch.where(
        value == r,
        (g - b) * scale,
        torch.where(value == g, (b - r) * scale + 2, (r - g) * scale + 4),
    )
    hue += 6 * shift.view(-1, 1, 1)  # in sixths of a circle
    n = torch.arange(5.0, 0.0, -2.0, device=x.device).view(1, 3, 1, 1)
    k = (hue[:, None] + n).remainder_(6)
    k = torch.minimum(k, 4 - k).clamp_(0, 1)
    return torch.addcmul(value[:, None], k, chroma[:, None], value=-1)


def color_jitter(
    x: Tensor,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    hue: Tensor,
    order: Tensor,
) -> Tensor:
    """The four adjustments of each image, each image in its own order.

    Args:
        brightness, contrast, saturation: (B,) factors.
        hue: (B,) shift in fractions of a circle.
        order: (B, 4), row i a permutation of BRIGHTNESS, CONTRAST, SATURATION, HUE.
    """
    one, zero = torch.ones_like(brightness), torch.zeros_like(brightness)
    factor = torch.stack([brightness, contrast, saturation, one], 1).gather(1, order)
    to_luma = torch.stack([zero, zero, 1 - saturation, zero], 1).gather(1, order)
    to_mean = torch.stack([zero, 1 - contrast, zero, zero], 1).gather(1, order)
    for place in range(4):
        x = _blend(x, factor[:, place], to_luma[:, place], to_mean[:, place])
        x = where((order[:, place] == HUE) & (hue != 0), adjust_hue, x, hue)
    return x


def grayscale(x: Tensor) -> Tensor:
    """Luma in all three channels."""
    return luma(x).expand_as(x)


def gaussian_blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Separable blur with mirrored borders, each image with its own sigma, in two batched matrix
    products.

    Args:
        sigma: (B,) standard deviation in pixels, > 0.
        kernel: odd width of the truncated kernel in pixels, below twice the side.
    """
    b, c, h, w = x.shape
    rows = _blur_matrix(sigma, kernel, h)[:, None].expand(b, c, h, h).reshape(b * c, h, h)
    columns = _blur_matrix(sigma, kernel, w)
    x = torch.bmm(x.reshape(b, c * h, w), columns.transpose(1, 2))
    return torch.bmm(rows, x.view(b * c, h, w)).view(b, c, h, w)


def _blur_matrix(sigma: Tensor, kernel: int, size: int) -> Tensor:
    """(B, size, size): weights; those of pixels outside fall back onto their mirror images."""
    reach = kernel // 2
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    weight = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    weight = weight / weight.sum(1, keepdim=True)  # (B, kernel)
    source = torch.arange(size, device=sigma.device)[:, None] + offset  # (size, kernel)
    period = max(2 * (size - 1), 1)
    source = source.remainder(period)
    source = torch.minimum(source, period - source) if size > 1 else torch.zeros_like(source)
    matrix = torch.zeros(len(sigma), size, size, device=sigma.device)
    source = source.expand(len(sigma), size, kernel)
    return matrix.scatter_add_(2, source, weight[:, None].expand(-1, size, -1))


def solarize(x: Tensor, threshold: float) -> Tensor:
    """Invert the values at or above the threshold, which is in [0, 1]."""
    return torch.where(x >= threshold, 1 - x, x)


def normalize(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x - mean) / std per channel."""
    planes = [(x[:, c] - m) / s for c, (m, s) in enumerate(zip(mean, std, strict=True))]
    return torch.stack(planes, 1)
