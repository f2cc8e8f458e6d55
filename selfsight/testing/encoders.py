"""Small encoders for tests: a batch takes milliseconds."""

from torch import Tensor, nn


class TinyEncoder(nn.Module):
    """(B, C, h, w) -> (B, 24), without batch statistics, by which two ranks could differ."""

    num_features = 24

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, 4, 2, 1), nn.GELU(), nn.Conv2d(16, 24, 4, 2, 1), nn.GELU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


def tiny_vit(size: int | tuple[int, int] = 16, channels: int = 3) -> nn.Module:
    """A Vision Transformer of timm with patches of 4 px, pooled; other sizes go through it."""
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=size,
        in_chans=channels,
        patch_size=4,
        num_classes=0,
        dynamic_img_size=True,
        global_pool="avg",
        fc_norm=False,
        embed_dim=24,
        depth=2,
        num_heads=2,
        class_token=False,
    )
