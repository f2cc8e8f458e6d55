"""A decorator that computes losses in full precision, also under autocast."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

P = ParamSpec("P")


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Convert half-precision inputs to float32 and turn autocast off; float64 is not changed.

    Tensors may be positional or keyword arguments, alone or in lists.

    >>> @full_precision
    ... def distance(a, b):
    ...     return (a - b).square().mean()
    >>> distance(torch.ones(2, dtype=torch.bfloat16), torch.zeros(2)).dtype
    torch.float32
    """

    @wraps(loss)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        given = (args, kwargs)
        device = next(x.device.type for x in tree_leaves(given) if isinstance(x, Tensor))
        with torch.autocast(device, enabled=False):
            wide, named = tree_map(_widen, given)
            return loss(*wide, **named)

    return wrapper


def _widen(x: Any) -> Any:
    half = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if half else x
