"""Images to verify an export with: smooth, with edges and fine structure, as photographs are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from selfsight.export.geometry import Size

COUNT = 8  # images of one kind


def draw(sizes: Sequence[Size], channels: int, bits: int) -> list[Any]:
    """COUNT images whose sizes are these in turn: PIL images (gray or RGB, 8 bits), or arrays
    (H, W, C) of uint8 or uint16. Equal arguments give equal images; no sizes give none."""
    if not sizes:
        return []
    generator = np.random.default_rng(0)
    return [_draw(sizes[n % len(sizes)], channels, bits, generator) for n in range(COUNT)]


def _draw(size: Size, channels: int, bits: int, generator: np.random.Generator) -> Any:
    planes = np.stack([_plane(size, generator) for _ in range(channels)], -1)
    top, left, bottom, right = _box(size, generator)
    planes[top:bottom, left:right] = generator.random(channels)  # an object with sharp edges
    pixels = (planes * (2**bits - 1)).round().astype(np.uint8 if bits == 8 else np.uint16)
    if bits == 8 and channels in (1, 3):
        return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return pixels


def _plane(size: Size, generator: np.random.Generator) -> np.ndarray:
    """(H, W) in [0, 1]: noise of several scales, the coarser the stronger."""
    height, width = size
    plane = np.zeros(size, np.float32)
    for cells, weight in ((3, 1.0), (9, 0.4), (33, 0.15)):
        coarse = Image.fromarray(generator.random((cells, cells), np.float32))
        plane += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    plane += 0.05 * generator.random(size, np.float32)
    return (plane - plane.min()) / max(float(np.ptp(plane)), 1e-6)


def _box(size: Size, generator: np.random.Generator) -> tuple[int, int, int, int]:
    (top, bottom), (left, right) = (sorted(generator.integers(0, side, 2)) for side in size)
    return int(top), int(left), int(bottom) + 1, int(right) + 1
