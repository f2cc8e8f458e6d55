"""Decoded images: small ones are one tensor on the device, others are decoded on demand."""

import copy
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from selfsight import distributed
from selfsight.batch import sides
from selfsight.data import decode as decoder
from selfsight.data.bad import BadImages
from selfsight.data.config import DataConfig
from selfsight.data.patience import Patience
from selfsight.data.source import BadImage, Source, Subset
from selfsight.errors import UserError

SMALL = 96  # pixels: images whose sides are all at most this are kept decoded
CENTER = 0.875  # side of an evaluation crop / shorter side of a photograph: 224 of 256 pixels


class Images:
    """The images of a source, decoded for batches.

    Args:
        bad: if given, undecodable images are recorded there and `decode` returns the next good
            image; if None, they raise BadImage.
        lazy: decode small images at the first use of `tensor`, not now.
        config: without auto (see `measure.settled`) where the normalization is used.
    Attributes:
        config: the keys of the data.
        labels: (N,) int64 on the device, or None. They are moved there when they are first asked
            for; a training asks for those of a batch instead, with `labels_of`.
        classes: names, or None.
        pool: threads that read and decode.
        workers: how many threads the pool has.
        patience: of reads, while the machine cannot read.
    """

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        device: torch.device,
        bad: BadImages | None = None,
        lazy: bool = False,
    ) -> None:
        self.source, self.classes, self.device = source, source.classes, device
        self.config = config
        self.workers = config.workers or distributed.cores()
        self.patience = Patience.of(config)
        self.pool = ThreadPoolExecutor(self.workers, "decode")
        self._labels: Tensor | None = None
        self._bad = bad
        self._broken: dict[int, str] = {}  # index of an undecodable image -> reason
        self.in_memory = config.in_memory
        self._tensor, self._is_decoded = None, False
        if not lazy:
            self._decode_all()

    @property
    def tensor(self) -> Tensor | None:
        """(N, C, H, W) uint8 or uint16 on the device, or None if images are decoded on demand."""
        if not self._is_decoded:
            self._decode_all()
        return self._tensor

    @property
    def labels(self) -> Tensor | None:
        if self._labels is None and self.source.labels is not None:
            self._labels = torch.from_numpy(self._int64(slice(None))).to(self.device)
        return self._labels

    def labels_of(self, rows: np.ndarray) -> Tensor | None:
        """(B,) int64, the labels of these images on the device, or None."""
        if self.source.labels is None:
            return None
        return to_device(torch.from_numpy(self._int64(rows)), self.device)

    def _int64(self, rows: np.ndarray | slice) -> np.ndarray:
        return self.source.labels[rows].astype(np.int64, copy=False)

    def __len__(self) -> int:
        return len(self.source)

    def decode(self, i: int) -> tuple[int, np.ndarray]:
        """Image i, or the next good one if i is undecodable: its index and (H, W, C) pixels.

        Raises: BadImage if it is undecodable and `bad` is None; UserError if there are more such
            images than data.max_bad allows.
        """
        while True:
            j = self._next_whole(i)
            try:
                return j, decoder.decode(self.source, j, self.patience)
            except BadImage as error:
                self.mark_bad(j, error)

    def _next_whole(self, i: int) -> int:
        """i, or the next index that is not known to be undecodable; after the last comes 0."""
        for j in chain(range(i, len(self)), range(i)):
            if j not in self._broken:
                return j
        first, reason = next(iter(self.broken().items()))
        name = self.source.name(first)
        raise UserError(f"none of the images can be decoded: {BadImage(name, reason)}")

    def mark_bad(self, i: int, error: BadImage) -> None:
        """Record that image i is undecodable. Raises: as `decode`."""
        if self._bad is None:
            raise error
        self._broken[i] = error.reason
        self._bad.note(error)

    def broken(self) -> dict[int, str]:
        """Index -> reason of the images that are known to be undecodable, in order."""
        return dict(sorted(self._broken.items()))

    def without(self, broken: Iterable[int]) -> "Images":
        """All images but these; in the result another undecodable image raises BadImage."""
        rows = np.setdiff1d(np.arange(len(self)), list(broken))
        others = self.part(rows) if broken else copy.copy(self)
        others._bad = None
        return others

    def replace_bad(self, rows: np.ndarray) -> np.ndarray:
        """These indices, those of undecodable images replaced by the next good ones."""
        return np.array([self._next_whole(int(i)) for i in rows]) if self._broken else rows

    def part(self, rows: np.ndarray) -> "Images":
        """The subset with these indices, in this order; no image is decoded again."""
        some = copy.copy(self)
        some.source = Subset(self.source, rows)
        some._broken = {n: self._broken[i] for n, i in enumerate(rows) if i in self._broken}
        some._labels = None
        at = torch.from_numpy(rows).to(self.device)
        some._tensor = None if self._tensor is None else self._tensor[at]
        return some

    def _decode_all(self) -> None:
        tensor = self._stacked()
        self._tensor = None if tensor is None else tensor.to(self.device)
        self._is_decoded = True

    def _stacked(self) -> Tensor | None:
        """All images as one (N, C, H, W) tensor; None if they are large or differ in size."""
        wanted = self.in_memory
        if wanted is False:
            return None
        _, first = self.decode(0)
        if wanted is None and max(first.shape[:2]) > SMALL:
            return None
        out = np.empty((len(self.source), *first.shape), first.dtype)
        for i in range(len(out)):  # one thread: two would only wait for Python's global lock
            taken, image = self.decode(i)
            if image.shape != first.shape:
                if wanted is None:
                    return None
                odd, size = (f"{s[1]}x{s[0]}" for s in (image.shape, first.shape))
                raise UserError(
                    f"data.in_memory=true: {self.source.name(taken)} is {odd} pixels, the first "
                    f"image {size}; all must be equal; set data.in_memory=false"
                )
            out[i] = image
        return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A small tensor on the device; the program does not wait for the copy to a GPU."""
    x = x.pin_memory() if device.type == "cuda" else x
    return x.to(device, non_blocking=True)


def cut(image: np.ndarray, box: list[int], size: int | tuple[int, int]) -> Tensor:
    """One crop as `resize` makes it, but (C, size, size)."""
    return torch.from_numpy(resize(image, box, size)).permute(2, 0, 1)


def resize(image: np.ndarray, box: list[int], size: int | tuple[int, int]) -> np.ndarray:
    """One crop of a decoded image, resized with antialiasing: (size, size, C) of its type.

    Args:
        image: (H, W, C) uint8 or uint16; the latter is resized as float32 and rounded.
        box: top, left, height, width in pixels.
        size: of a square, or height and width.
    """
    top, left, height, width = box
    # Copied by NumPy: torch would use threads of its own, which compete with those of the pool.
    crop = np.ascontiguousarray(image[top : top + height, left : left + width])
    deep, channels = crop.dtype == np.uint16, crop.shape[2]
    shape = sides(size)
    if deep:
        # of one channel and one column, torch's antialiasing of floats does not resize the height
        crop = np.repeat(crop, 2, 2) if channels == 1 and 1 in (width, shape[1]) else crop
        crop = crop.astype(np.float32)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(crop)[None].permute(0, 3, 1, 2),  # so that torch sees channels last
        shape,
        mode="bilinear",
        antialias=True,
        align_corners=False,
    )
    resized = resized[0].permute(1, 2, 0).numpy()[..., :channels]
    return np.rint(resized).clip(0, 65535).astype(np.uint16) if deep else resized


def evaluation_box(height: int, width: int) -> list[int]:
    """The central square that evaluation uses; of a photograph 0.875 of the shorter side."""
    return center_box(height, width, 1.0 if max(height, width) <= SMALL else CENTER)


def center_box(height: int, width: int, fraction: float) -> list[int]:
    """The centred square whose side is the given fraction of the shorter side."""
    side = max(1, round(min(height, width) * fraction))
    return [(height - side) // 2, (width - side) // 2, side, side]
