"""Encoders of your own: a module, or a class or function that makes one."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from selfsight import blame, randomness
from selfsight.batch import sides
from selfsight.errors import UserError
from selfsight.own import Part


def build_part(
    part: Part,
    options: Mapping[str, Any],
    sizes: Mapping[str, int | tuple[int, int]],
    seed: int,
    channels: int = 3,
) -> nn.Module:
    """A new encoder (B, C, h, w) -> (B, D); a module of the running program is copied.

    Args:
        options: arguments of the class or function.
        sizes: of images in pixels that the encoder must take, by the keys that set them.
        channels: C of these images.
    Raises: UserError if its code fails, or if that is not an encoder.
    """
    value, key = part.value, f"backbone.name={part.name}"
    with torch.random.fork_rng(devices=[]), blame.blamed([value]):
        torch.manual_seed(randomness.torch_seed(randomness.WEIGHTS, seed))
        if isinstance(value, nn.Module):
            if options:
                raise UserError(f"backbone.options={dict(options)}: {key} is built already")
            backbone = copy.deepcopy(value).cpu()
        elif callable(value):
            backbone = value(**options)
        else:
            backbone = None
    if not isinstance(backbone, nn.Module):
        found = value if backbone is None else backbone
        raise UserError(
            f"{key}: is a {type(found).__name__}; it must be a torch.nn.Module, or a class or "
            f"function that returns one"
        )
    for size in sizes.values():
        _try(backbone, (1, channels, *sides(size)))
    return backbone


@torch.no_grad()
def _try(backbone: nn.Module, shape: tuple[int, ...]) -> None:
    """Raises: UserError, with the traceback, if the encoder fails on an image of this shape."""
    training = backbone.training
    backbone.eval()
    try:
        with blame.blamed([backbone]):
            backbone(torch.zeros(shape))
    finally:
        backbone.train(training)
