"""The first layers of encoders, adapted to small and to gray images."""

import functools

from torch import Tensor, nn

from selfsight.errors import UserError


def adapt_stem(
    backbone: nn.Module, name: str, stride: int = 1, padding: int = 1, relu: bool = True
) -> None:
    """Put a small stem in place of 7x7, stride 2 and max-pool, which leave 8x8 of 32x32 pixels."""
    stem = getattr(backbone, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(backbone, "maxpool"):
        raise UserError(
            f"backbone.small_images=true: only for ResNets with one stem convolution, not "
            f"{name}; ViTs take backbone.patch_size instead"
        )
    kernel = 3 if stride == 1 else 2 * stride
    backbone.conv1 = nn.Conv2d(
        stem.in_channels,
        stem.out_channels,
        kernel,
        stride,
        padding,
        bias=False,
    )
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    backbone.maxpool = nn.Identity()
    if not relu:
        backbone.act1 = nn.Identity()


def skip_before(conv: nn.Conv2d) -> None:
    """Let a 1x1 convolution of an image skip pixels before it and not by its stride.

    The result is the same. The backward pass of such a stride over 3 or 4 channels in
    channels_last writes past its memory on a CPU (torch 2.15): it hangs, or crashes.
    """
    if conv.kernel_size == (1, 1) and conv.in_channels < 8 and conv.stride != (1, 1):
        down, across = conv.stride
        conv.stride = (1, 1)
        conv.register_forward_pre_hook(functools.partial(_skip, down, across))


def _skip(down: int, across: int, module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """The rows and columns of the pixels at multiples of these numbers."""
    return inputs[0][:, :, ::down, ::across]


def to_gray(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """(B, 3, h, w) -> (B, 1, h, w): the mean of the channels, which are equal in a gray image."""
    x, *rest = inputs
    return (x.mean(1, keepdim=True) if x.shape[1] == 3 else x, *rest)
