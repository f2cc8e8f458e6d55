"""A frozen teacher: an encoder that is read, and no part of a method."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.batch import sides
from selfsight.methods.dense import Dense, dense


class FrozenTeacher(nn.Module):
    """An encoder in eval mode without gradients; no part of a method's parameters or state, for it
    is made anew from its own file.

    >>> import timm
    >>> teacher = FrozenTeacher(timm.create_model("resnet18", num_classes=0), size=64)
    >>> teacher(torch.rand(2, 3, 32, 32)).places.shape
    torch.Size([2, 4, 512])
    """

    def __init__(
        self,
        encoder: nn.Module,
        size: int | tuple[int, int] | None = None,
        scale: tuple[float, ...] = (1.0,),
        shift: tuple[float, ...] = (0.0,),
        cache: bool = False,
    ) -> None:
        """Args:
        size: of its own input in pixels, to which views are resized; None: as they are.
        scale, shift: per channel, from the views' normalisation to its own: x * scale + shift.
        cache: keep the features of each image and view in memory, for views that are always equal.
        """
        super().__init__()
        self._encoder = (encoder.eval().requires_grad_(False),)  # a tuple is not registered
        self._size = None if size is None else sides(size)
        for name, value in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)
        self._cache: dict[tuple[int, int], tuple[Tensor, ...]] | None = {} if cache else None
        self._grid = (0, 0)

    @property
    def encoder(self) -> nn.Module:
        return self._encoder[0]

    def _apply(self, fn, recurse: bool = True) -> "FrozenTeacher":
        self.encoder._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Dense:
        x = x * self.scale.to(x.dtype) + self.shift.to(x.dtype)
        if self._size is not None and x.shape[2:] != self._size:
            x = F.interpolate(x, self._size, mode="bicubic", antialias=True, align_corners=False)
        return dense(self.encoder, x)

    def of(self, x: Tensor, index: Tensor, view: int) -> Dense:
        """`forward`, of images with these indices (B,), which a cache may hold."""
        if self._cache is None:
            return self(x)
        keys = [(view, i) for i in index.tolist()]
        new = [row for row, key in enumerate(keys) if key not in self._cache]
        if new:
            found = self(x[new])
            self._grid = found.grid
            parts = [part.cpu() for part in found[:2] if part is not None]
            self._cache |= zip([keys[row] for row in new], zip(*parts, strict=True), strict=True)
        rows = zip(*(self._cache[key] for key in keys), strict=True)
        image, *places = (torch.stack(part).to(x.device) for part in rows)
        return Dense(image, places[0] if places else None, self._grid)
