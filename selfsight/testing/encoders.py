"""Small encoders for tests: a batch takes milliseconds."""

from typing import Any

import torch
from torch import Tensor, nn

from selfsight.methods.frozen import FrozenTeacher


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


def tiny_teacher(size: int = 16, channels: int = 3) -> dict[str, Any]:
    """Arguments of a method with a frozen teacher: one of random weights, for images of 16 px."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        teacher = FrozenTeacher(tiny_vit(size, channels))
        return {"teacher": teacher, "sample": torch.zeros(1, channels, size, size)}
