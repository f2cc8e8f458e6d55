"""Parts between encoder and loss: heads, prototypes, and the encoding of several views."""

from collections.abc import Callable
from itertools import groupby, pairwise
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight import distributed
from selfsight.methods.method import Backbone


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of (..., D) over the batch of all ranks, on any device; the tokens of an image
    count as samples."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim > 2:
            return self(x.flatten(0, -2)).view_as(x)
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            n = len(wide) * distributed.world_size()
            mean = distributed.all_sum(wide.sum(0)) / n  # (D,)
            variance = distributed.all_sum((wide - mean).square().sum(0)) / n
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
                unbiased = variance * (n / max(1, n - 1))
                self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
            x = (wide - mean) * torch.rsqrt(variance + self.eps)
            return x * self.weight + self.bias if self.affine else x


def mlp(
    *widths: int,
    norm: bool = True,
    last: Literal["bias", "no bias", "norm", "affine norm"] = "bias",
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers of the given widths (input, hidden ..., output) with activations between them.

    Args:
        norm: batch normalisation before each activation. The linear layer before it then has no
            bias, since the normalisation would cancel it.
        last: what the last linear layer has: a bias, no bias, or no bias and a batch normalisation
            without ("norm") or with ("affine norm") a learned affine map.
    """
    *hidden, (inputs, outputs) = pairwise(widths)
    layers: list[nn.Module] = []
    for before, after in hidden:
        layers.append(nn.Linear(before, after, bias=not norm))
        layers += [BatchNorm(after), activation()] if norm else [activation()]
    layers.append(nn.Linear(inputs, outputs, bias=last == "bias"))
    if last.endswith("norm"):
        layers.append(BatchNorm(outputs, affine=last == "affine norm"))
    return nn.Sequential(*layers)


class EncoderWithProjection(nn.Module):
    """An encoder with the first layer of its projector, (B, 3, s, s) -> (B, width).

    The layer stays part of the encoder after pretraining.

    Source: SimCLR v2, section 2 (arXiv 2006.10029).
    """

    def __init__(self, backbone: Backbone, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = mlp(backbone.num_features, width, width)[:-1]
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def encode(network: nn.Module, views: list[Tensor]) -> list[Tensor]:
    """The network's output for each view; adjacent views of one size are one batch."""
    outputs: list[Tensor] = []
    for _, group in groupby(views, lambda view: view.shape[-1]):
        same = list(group)
        outputs += network(torch.cat(same)).chunk(len(same))
    return outputs


class CosinePrototypes(nn.Module):
    """Cosines of the inputs and K prototypes: (..., D) -> (..., K).

    The same as normalising the input and applying a linear layer with weight normalisation (arXiv
    1602.07868) whose gains are fixed to 1.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, dim) / dim**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=1))


C = TypeVar("C")


def with_divisor(config: C, heads: str, width: str) -> C:
    """The configuration. Raises: ValueError if its number of attention heads does not divide its
    width.

    Args:
        heads, width: names of the two keys.
    """
    if getattr(config, width) % getattr(config, heads):
        raise ValueError(
            f"{heads}={getattr(config, heads)} does not divide {width}={getattr(config, width)}"
        )
    return config
