"""Digits of any number of channels, of 8 or 16 bits, for tests of what comes after decoding."""

from typing import Any

import numpy as np
import torch

from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.source import Decoding
from selfsight.data.sources.arrays import Digits

# (channels, type of a value)
KINDS = [(c, kind) for c in (1, 4, 12) for kind in (np.uint8, np.uint16)]
NAMES = [f"{channels} channels, {np.dtype(kind)}" for channels, kind in KINDS]


def pixels_of(split: str, channels: int, kind: Any) -> np.ndarray:
    """(N, 8, 8, C): each channel is the digit, darker and further to the right."""
    source = Digits(split)
    gray = np.stack([source.read(i)[..., 0] for i in range(len(source))]).astype(np.uint16)
    bands = [np.roll(gray, c // 2, 2) * (32 - c) // 32 for c in range(channels)]
    pixels = np.stack(bands, -1)
    return (pixels * 251 + pixels % 7).astype(kind) if kind == np.uint16 else pixels.astype(kind)


def bits_of(kind: Any) -> int:
    return 8 * np.dtype(kind).itemsize


class Bands:
    """These digits as a source."""

    def __init__(self, split: str, channels: int, kind: Any) -> None:
        digits = Digits(split)
        self.classes, self.labels = digits.classes, digits.labels
        self._pixels, self._what = pixels_of(split, channels, kind), f"{split} {channels}"
        self.decoding = Decoding(channels=channels, bits=bits_of(kind))

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, i: int) -> np.ndarray:
        return self._pixels[i]

    def name(self, i: int) -> str:
        return f"{self._what} {i}"


def images_of(channels: int, kind: Any, split: str = "train") -> Images:
    colours = {"mean": (0.3,) * channels, "std": (0.4,) * channels}
    data = DataConfig(channels=channels, bits=bits_of(kind), **colours)
    return Images(Bands(split, channels, kind), data, torch.device("cpu"))


def keys_of(channels: int) -> list[str]:
    """Overrides for a run on them."""
    views = "gray-small" if channels == 1 else "multispectral-small"
    numbers = [f"data.{key}={[value] * channels}" for key, value in (("mean", 0.3), ("std", 0.4))]
    return [f"data.channels={channels}", *numbers, f"views={views}", "views.0.size=16"]
