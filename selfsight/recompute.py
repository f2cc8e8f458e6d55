"""An encoder that computes a batch in parts and keeps no activations of them: each part is computed
once more when its gradient is there.

The outputs of all parts are one batch again, so heads, losses, queues and collectives see the whole
batch. Gradients are those of the whole batch, since no part of such an encoder depends on another.
Source: gradient caching (arXiv 2101.06983), here by PyTorch's activation checkpointing.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from selfsight.errors import UserError

PARTS = "encoder_parts"  # attribute of an encoder that computes in parts
DRAWS = "draws"  # of a module with random layers: their numbers, see random_layers.py


def compute_in_parts(module: nn.Module, encoder: nn.Module, count: int) -> None:
    """Let the encoder, and each copy of it in the module (a teacher), compute in parts from now on.

    Args:
        encoder: of SimCLR v2 with the layer of the projector that it keeps, which is a head here.
        count: parts of a batch; 1 changes nothing.
    Raises: as `check_parts`.
    """
    if count == 1:
        return
    check_parts(encoder, count)
    for copy in copies_of(module, encoder):
        wrap(copy)
        setattr(copy, PARTS, count)


def copies_of(module: nn.Module, encoder: nn.Module) -> list[nn.Module]:
    """The encoder, and each copy of it in the module."""
    inner = _shape(_inner(encoder))
    return [part for part in module.modules() if _shape(part) == inner]


def wrap(encoder: nn.Module) -> None:
    """Let the encoder's forward go through `in_parts`, once."""
    if not hasattr(encoder, PARTS):
        encoder.forward = functools.partial(in_parts, encoder, encoder.forward)
        setattr(encoder, PARTS, 1)


def in_parts(encoder: nn.Module, work: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """`work` of the inputs, in as many parts as the encoder has been given.

    Dropout and stochastic depth draw the same numbers when a part is computed again, and those of
    the whole batch.
    Args:
        inputs: (B, ...) each, or None, which every part gets.
    Returns: (B, ...).
    """
    count, draws = getattr(encoder, PARTS, 1), getattr(encoder, DRAWS, None)
    total = next(len(x) for x in inputs if x is not None)
    of_rows = draws.encoding(total) if draws else (lambda work, first, last: work)
    if count == 1:
        return of_rows(work, 0, total)(*inputs)
    each = [[x] * count if x is None else list(x.tensor_split(count)) for x in inputs]
    kept = [part for part in zip(*each, strict=True) if all(x is None or len(x) for x in part)]
    outputs, first = [], 0
    for part in kept:
        last = first + next(len(x) for x in part if x is not None)
        mine = of_rows(work, first, last)
        learn = torch.is_grad_enabled()
        outputs.append(checkpoint(mine, *part, use_reentrant=False) if learn else mine(*part))
        first = last
    return torch.cat(outputs)


def check_parts(encoder: nn.Module, count: int) -> None:
    """Raises: UserError for parts of an encoder whose batch normalisation would see one part."""
    if count > 1 and depends_on_batch(encoder):
        raise UserError(
            f"encoder_parts={count}: the encoder has batch normalisation, whose statistics would "
            f"be those of a part; choose an encoder without it (a ViT, convnext_tiny, "
            f"resnet50_gn), or accumulate={count}, which is another objective where images are "
            f"compared"
        )


def depends_on_batch(encoder: nn.Module) -> bool:
    """Whether the encoder's output for an image depends on the others: batch normalisation."""
    return any(hasattr(module, "running_mean") for module in _inner(encoder).modules())


def _inner(encoder: nn.Module) -> nn.Module:
    inner = getattr(encoder, "backbone", encoder)
    return inner if isinstance(inner, nn.Module) else encoder


def _shape(module: nn.Module) -> tuple[type, dict[str, torch.Size]]:
    """What a copy has in common with it: by its class alone, a head may be an nn.Sequential too."""
    return type(module), {name: value.shape for name, value in module.state_dict().items()}
