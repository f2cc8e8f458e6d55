"""Networks that keep fewer activations: they compute them once more when their gradient is there.

An encoder may compute a batch in parts and keep nothing of them. The outputs of all parts are one
batch again, so heads, losses, queues and collectives see the whole batch. Gradients are those of
the whole batch, since no part of such an encoder depends on another (source: gradient caching,
arXiv 2101.06983). Or each block of a transformer keeps its input alone (source: arXiv 1604.06174).
Both are PyTorch's activation checkpointing.
"""

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from selfsight.errors import UserError

KEPT = 2**29  # bytes that a CPU's allocator may keep from part to part: asking for them takes time
PARTS = "encoder_parts"  # attribute of an encoder that computes in parts
AGAIN = "recomputed"  # attribute of a block that is computed again in the backward pass
LISTS = ("blocks", "layers", "layer")  # how timm, torch and transformers call a list of blocks
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
        if outputs[-1].is_cpu:
            _give_back()
            if outputs[-1].requires_grad:  # called between the backward passes of two parts
                outputs[-1].register_hook(lambda _: _give_back())
        first = last
    return torch.cat(outputs)


class _Use(ctypes.Structure):
    """What glibc's mallinfo2 returns, by its names; fordblks are the free bytes that it keeps."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names.split())


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library of Linux, if it is glibc (2.33 or newer)."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = _Use
    return library


def _give_back() -> None:
    """Return memory of earlier parts to the system: glibc keeps what is free, finds no room in it
    for the next part, and so may hold several times what a part needs."""
    library = _glibc()
    if library is not None and library.mallinfo2().fordblks > KEPT:
        library.malloc_trim(0)


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


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks of all transformers in a module, and of other networks that repeat one block: the
    modules of the innermost lists called blocks, layers or layer, if they are of one class."""
    lists = {
        name: list(part)
        for name, part in module.named_modules()
        if name.rpartition(".")[2] in LISTS
        and isinstance(part, nn.ModuleList | nn.Sequential)
        and len({type(block) for block in part}) == 1
        and all(any(True for _ in block.parameters()) for block in part)
    }
    outer = {name for name in lists if any(other.startswith(f"{name}.") for other in lists)}
    return [block for name, blocks in lists.items() if name not in outer for block in blocks]


def recompute_blocks(module: nn.Module, encoder: nn.Module) -> None:
    """Let each block in the module keep its input alone and compute the rest once more in the
    backward pass. Random layers draw the same numbers again.

    Blocks with batch normalisation stay as they are: it would count each batch twice.
    Raises: as `check_recompute`.
    """
    check_recompute(encoder)
    for block in blocks_of(module):
        if not hasattr(block, AGAIN) and not depends_on_batch(block):
            setattr(block, AGAIN, True)
            block.forward = functools.partial(_again, block, block.forward)


def _again(block: nn.Module, work: Callable[..., Any], *inputs: Any, **more: Any) -> Any:
    if not torch.is_grad_enabled():
        return work(*inputs, **more)
    draws = getattr(block, DRAWS, None)
    mine = draws.repeatable(work) if draws else work
    return checkpoint(mine, *inputs, use_reentrant=False, **more)


def check_recompute(encoder: nn.Module) -> None:
    """Raises: UserError for an encoder without blocks, or with batch normalisation."""
    if depends_on_batch(encoder):
        raise UserError(
            "recompute=true: the encoder has batch normalisation, which would count each batch "
            "twice; choose an encoder without it (a ViT, convnext_tiny, resnet50_gn)"
        )
    if not blocks_of(nn.ModuleList([encoder])):
        raise UserError(
            f"recompute=true: {type(encoder).__name__} has no list of blocks that could be "
            f"computed again; choose a transformer, or encoder_parts=K, which works with others"
        )


def _inner(encoder: nn.Module) -> nn.Module:
    inner = getattr(encoder, "backbone", encoder)
    return inner if isinstance(inner, nn.Module) else encoder


def _shape(module: nn.Module) -> tuple[type, dict[str, torch.Size]]:
    """What a copy has in common with it: by its class alone, a head may be an nn.Sequential too."""
    return type(module), {name: value.shape for name, value in module.state_dict().items()}
