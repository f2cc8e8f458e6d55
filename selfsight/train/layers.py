"""Layers of an encoder: those near its input learn more slowly, or only later."""

from collections.abc import Callable

from torch import nn

from selfsight.errors import UserError
from selfsight.methods.method import Method


def depths(backbone: nn.Module) -> dict[str, int]:
    """The number of the layer that each parameter belongs to, from 0 at the input; timm's groups.

    Parameters that timm does not know, such as a kept projector layer, get the top layer's number.
    Raises: UserError for an encoder that is not timm's.
    """
    from timm.models import group_parameters

    inner = getattr(backbone, "backbone", backbone)
    if not hasattr(inner, "group_matcher"):
        raise UserError(
            f"layer_decay: timm's models say which layer a weight is in, {type(inner).__name__} "
            f"does not; set it to 1, or give the encoder the method group_matcher of timm's models"
        )
    prefix = "" if inner is backbone else "backbone."
    groups = group_parameters(inner, inner.group_matcher(coarse=False), reverse=True)
    known = {f"{prefix}{name}": depth for name, depth in groups.items()}
    top = max(known.values()) + 1
    return {name: known.get(name, top) for name, _ in backbone.named_parameters()}


def layer_rates(backbone: nn.Module, decay: float) -> Callable[[str], float]:
    """The factor on the rate of a method's parameter with this name: decay^d for a layer of its
    encoder that is d layers below the heads (BEiT, arXiv 2106.08254), else 1."""
    depth = depths(backbone) if decay < 1 else {}
    heads = max(depth.values(), default=0) + 1

    def rate(name: str) -> float:
        part, _, inside = name.partition(".")
        return decay ** (heads - depth[inside]) if depth and part == "backbone" else 1.0

    return rate


class FrozenBackbone:
    """Keeps an encoder as it is, in eval mode, for the first part of training: new heads, which
    start at random, would change loaded weights for the worse."""

    def __init__(self, method: Method, until: float) -> None:
        """Args:
        until: the progress, in [0, 1], from which the encoder is trained.
        Raises: UserError if nothing but the encoder can be trained.
        """
        # SimCLR v2's encoder ends in a layer of its head
        self._encoder = getattr(method.backbone, "backbone", method.backbone)
        self._trained = [p for p in self._encoder.parameters() if p.requires_grad]
        self._until, self._frozen = until, False
        inside = {id(p) for p in self._encoder.parameters()}
        if until and not any(p.requires_grad and id(p) not in inside for p in method.parameters()):
            raise UserError(
                f"freeze_backbone={until}: {type(method).__name__} has no head that could be "
                f"trained meanwhile; leave it out"
            )

    def changes(self, progress: float) -> bool:
        """Freeze or release the encoder, if it is time; whether that was done."""
        frozen = progress < self._until
        if frozen == self._frozen:
            return False
        for parameter in self._trained:
            parameter.requires_grad_(not frozen)
        self._encoder.train(not frozen)
        self._frozen = frozen
        return True
