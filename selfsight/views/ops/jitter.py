"""Colour jitter: brightness, contrast, saturation and hue, each image in its own random order."""

from collections.abc import Sequence

import torch
from torch import Tensor

from selfsight.views.ops.augment import Planes, luma, picks_rows, where_planes

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

# (factor, to_luma, offset), each (B, 1, 1, 1): the map clamp(factor * x + to_luma * luma + offset).
Map = tuple[Tensor, Tensor, Tensor | int]


def color_jitter(
    planes: Planes,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    hue: Tensor,
    *place: Tensor,
) -> Planes:
    """Four adjustments of each image, each image in its own order.

    Brightness is clamp(factor * x), contrast clamp(factor * x + (1 - factor) * mean luma of the
    image), saturation clamp(factor * x + (1 - factor) * luma of each pixel). The luma of other than
    three channels is their mean; their saturation is 1 and their hue 0.

    Args:
        brightness, contrast, saturation: (B,) factors.
        hue: (B,) shift in fractions of a circle.
        place: four (B,), the positions 0 to 3 of BRIGHTNESS, CONTRAST, SATURATION and HUE in the
            image's order.
    """
    factors = [f.view(-1, 1, 1, 1) for f in (brightness, contrast, saturation)]
    adjust = _in_turn if picks_rows(hue) else _in_two_passes
    return adjust(planes, factors, hue, [p.view(-1, 1, 1, 1) for p in place])


def _in_turn(
    planes: Planes, factors: Sequence[Tensor], hue: Tensor, place: Sequence[Tensor]
) -> Planes:
    """At each of the four positions a map, and a hue shift for images with the hue there."""
    for k in range(4):
        factor, to_luma, to_mean = _map(k, factors, place)
        gray = luma(planes)
        mean = gray.mean((2, 3), keepdim=True)
        planes = _blend(planes, factor, gray.mul_(to_luma).add_(mean.mul_(to_mean)))
        mask = (place[HUE].flatten() == k) & (hue != 0)
        planes = where_planes(mask, _turn_hue, planes, hue)
    return planes


def _in_two_passes(
    planes: Planes, factors: Sequence[Tensor], hue: Tensor, place: Sequence[Tensor]
) -> Planes:
    """Three maps, the hue, three maps; most of these maps change nothing.

    The mean luma for the contrast is computed first, in a pass over what precedes the contrast.
    Compiled, both passes are loops over the pixels without a branch.
    """
    after = [p > place[HUE] for p in place[:HUE]]
    place = [p + 2 * late for p, late in zip(place[:HUE], after, strict=True)]  # 0 ... 2 or 3 ... 5
    maps = [_map(k, factors, place) for k in range(6)]
    before = []
    for k in (0, 1, 3, 4):  # positions that can precede the contrast
        factor, to_luma, _ = maps[k]
        early = k < place[CONTRAST]
        before.append((factor.where(early, 1), to_luma.where(early, 0), 0))
    so_far = _chain(planes, before, hue * after[CONTRAST].flatten())
    mean = luma(so_far).mean((1, 2, 3), keepdim=True)
    maps = [(factor, to_luma, to_mean * mean) for factor, to_luma, to_mean in maps]
    return _chain(planes, maps, hue)


def _map(
    k: int, factors: Sequence[Tensor], place: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The adjustment at position k as a Map, whose offset has to be multiplied by the mean luma.

    For images with no brightness, contrast or saturation at position k it is 1, 0, 0: no change.
    """
    brightness, contrast, saturation = factors
    bright, even, pale = (p == k for p in place[:HUE])
    factor = brightness.where(bright, contrast.where(even, saturation.where(pale, 1)))
    return factor, (1 - saturation).where(pale, 0), (1 - contrast).where(even, 0)


def _chain(planes: Planes, maps: Sequence[Map], hue: Tensor) -> Planes:
    """Apply the maps in sequence, and the hue shift after the first half of them."""
    for k, (factor, to_luma, offset) in enumerate(maps):
        if k == len(maps) // 2:
            planes = _turn_hue(planes, hue)
        planes = _blend(planes, factor, luma(planes) * to_luma + offset)
    return planes


def _blend(planes: Planes, factor: Tensor, shade: Tensor) -> Planes:
    """clamp(factor * x + shade), factor (B, 1, 1, 1), shade (B, 1, H, W)."""
    return [torch.addcmul(shade, plane, factor).clamp_(0, 1) for plane in planes]


def _turn_hue(planes: Planes, shift: Tensor) -> Planes:
    """Shift the hue of HSV by `shift` full circles; value v and chroma c do not change.

    A channel is v - c * clamp(|h - n| - 1, 0, 1) with the hue h in [0, 6] and n = 2 for green, 4
    for blue, and v - c * clamp(2 - |h - 3|, 0, 1) for red: the closed form of the six cases of the
    usual conversion.
    """
    if len(planes) != 3:
        return planes
    r, g, b = planes
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    scale = 1 / chroma.clamp(min=1e-12)
    hue = torch.where(
        value == r,
        (g - b) * scale,
        torch.where(value == g, (b - r) * scale + 2, (r - g) * scale + 4),
    )
    hue += 6 * shift.view(-1, 1, 1, 1)  # in sixths of a circle
    hue.sub_((hue / 6).floor_(), alpha=6)
    away = (hue - 3).abs_().neg_().add_(2), (hue - 2).abs_().sub_(1), hue.sub_(4).abs_().sub_(1)
    return [torch.addcmul(value, a.clamp_(0, 1), chroma, value=-1) for a in away]
