"""Losses are computed in full precision, whatever autocast says outside."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


def full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Half-precision inputs become float32 and autocast is off inside; float64 stays as it is.

    Tensors may come alone or in lists, by place or by name.
    """

    @wraps(loss)
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        given = (args, kwargs)
        device = next(x.device.type for x in tree_leaves(given) if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            args, kwargs = tree_map(_widen, given)
            return loss(*args, **kwargs)

    return wrapper


def _widen(x: Any) -> Any:
    half = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if half else x
