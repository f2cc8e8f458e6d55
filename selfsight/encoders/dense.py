"""Maps of an encoder's inner layers: what it says of each place of an image."""

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from selfsight.errors import UserError, some
from selfsight.methods.heads import EncoderWithProjection

Layers = int | str | Sequence[int | str]
LAST = "last"


def layer_names(backbone: nn.Module) -> list[str]:
    """The layers whose maps can be read, from the first to the last: the blocks of a transformer,
    the stages of a convolutional network.

    Raises: UserError for a model that has none, which is one that is not timm's.
    """
    model: Any = model_inside(backbone)
    if not hasattr(model, "forward_intermediates") or not getattr(model, "feature_info", None):
        raise UserError(
            f"layers: {type(model).__name__} gives no maps of its layers; timm's models that have "
            f"forward_intermediates do"
        )
    info = model.feature_info
    return [entry["module"] for entry in getattr(info, "info", info)]


def chosen_layers(backbone: nn.Module, layers: Layers) -> list[int]:
    """The numbers of these layers, from 0.

    Args:
        layers: one or several of: a number, from 0 or negative from the end; a name; "last".
    Raises: UserError for a layer that the model does not have, or for none.
    """
    names = layer_names(backbone)
    several = isinstance(layers, Iterable) and not isinstance(layers, str)
    asked = list(layers) if several else [layers]
    if not asked:
        raise UserError('layers: names no layer; give a number such as -1, a name, or "last"')
    return [_number(layer, names) for layer in asked]


def layer_maps(
    backbone: nn.Module, x: Tensor, layers: Layers = LAST, norm: bool = True
) -> list[Tensor]:
    """The map (B, C, h, w) of each of these layers, in the order that they are asked for.

    Args:
        x: (B, C, H, W), resized and normalised.
        layers: as of `chosen_layers`.
        norm: of a transformer, pass each map through its last layer norm.

    >>> from selfsight.encoders.backbones import BackboneConfig, build_backbone
    >>> resnet = build_backbone(BackboneConfig(name="resnet18"), 64, seed=0)
    >>> maps = layer_maps(resnet, torch.zeros(1, 3, 64, 64), ["layer1", -1])
    >>> [tuple(each.shape) for each in maps]
    [(1, 64, 16, 16), (1, 512, 2, 2)]
    """
    numbers = chosen_layers(backbone, layers)
    each = sorted(set(numbers))
    maps = model_inside(backbone).forward_intermediates(
        x, each, norm=norm, stop_early=True, output_fmt="NCHW", intermediates_only=True
    )
    found = dict(zip(each, maps, strict=True))
    return [found[number] for number in numbers]


class LayerFeatures(nn.Module):
    """An encoder whose features are the means of maps over their places, those of several layers
    one after the other.

    Args:
        size: height and width of an image, by which the width D is measured.
    Attributes:
        layers: the names of the layers; num_features: D.
    """

    def __init__(
        self, backbone: nn.Module, layers: Layers, channels: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._numbers = chosen_layers(backbone, layers)
        names = layer_names(backbone)
        self.layers = [names[number] for number in self._numbers]
        self.eval()
        with torch.no_grad():
            self.num_features = self(torch.zeros(1, channels, *size)).shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        maps = layer_maps(self.backbone, x, self._numbers)
        return torch.cat([each.float().mean((2, 3)) for each in maps], 1)


def model_inside(backbone: nn.Module) -> Any:
    """The model inside, of an encoder that keeps a part of its head."""
    return backbone.backbone if isinstance(backbone, EncoderWithProjection) else backbone


def _number(layer: int | str, names: list[str]) -> int:
    if str(layer).lower() == LAST:
        return len(names) - 1
    if layer in names:
        return names.index(str(layer))
    try:
        number = int(layer) if isinstance(layer, (Integral, str)) else len(names)
    except ValueError:
        number = len(names)
    if not -len(names) <= number < len(names):
        raise UserError(
            f"layers={layer}: the encoder has the layers 0 to {len(names) - 1} ({some(names)}); "
            f"give a number, negative from the end, a name, or last"
        )
    return number % len(names)
