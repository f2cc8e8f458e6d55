"""What an encoder says of an image and of each place in it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.methods.method import Backbone
from selfsight.recompute import in_parts


class Dense(NamedTuple):
    """Features of images and of their places.

    Attributes:
        image: (B, D); places: (B, N, E) row by row, or None; grid: their rows and columns.
    """

    image: Tensor
    places: Tensor | None
    grid: tuple[int, int] = (0, 0)

    def at(self, grid: tuple[int, int]) -> Tensor:
        """(B, N', E) the features of places on another grid, interpolated bilinearly."""
        if grid == self.grid:
            return self.places
        wide = torch.promote_types(self.places.dtype, torch.float32)  # not of bf16 on a CPU
        maps = self.places.to(wide).mT.unflatten(2, self.grid)  # (B, E, rows, columns)
        maps = F.interpolate(maps, grid, mode="bilinear", antialias=True, align_corners=False)
        return maps.flatten(2).mT


def dense(backbone: Backbone, x: Tensor) -> Dense:
    """The encoder's features of images (B, 3, H, W); those of places are a ViT's tokens or another
    model's last map. An encoder that is not timm's has none."""
    if not hasattr(backbone, "forward_features") or not hasattr(backbone, "forward_head"):
        return Dense(backbone(x), None)
    found = in_parts(backbone, backbone.forward_features, x)
    image = backbone.forward_head(found, pre_logits=True)
    if found.ndim == 4:
        if getattr(backbone, "output_fmt", "NCHW") == "NCHW":
            found = found.permute(0, 2, 3, 1)
        return Dense(image, found.flatten(1, 2), tuple(found.shape[1:3]))
    places = found[:, getattr(backbone, "num_prefix_tokens", 0) :]
    rows = round((places.shape[1] * x.shape[2] / x.shape[3]) ** 0.5)
    if rows * (places.shape[1] // rows) != places.shape[1]:
        return Dense(image, None)
    return Dense(image, places, (rows, places.shape[1] // rows))


@torch.no_grad()
def tried(backbone: Backbone, x: Tensor) -> Dense:
    """What `dense` gives, by which widths are measured."""
    mode = backbone.training
    found = dense(backbone.eval(), x)
    backbone.train(mode)
    return found
