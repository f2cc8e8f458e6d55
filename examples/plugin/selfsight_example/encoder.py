"""A small encoder of patches."""

from torch import Tensor, nn


class PatchNet(nn.Module):
    """(B, 3, s, s) -> (B, width): patches of 4 px, two layers of 3x3 convolutions, their mean.

    The arguments are `backbone.options` of a configuration.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.mix = nn.Sequential(
            nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.patches(x)).mean((2, 3))
