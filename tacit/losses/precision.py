"""Losses are computed in full precision, whatever autocast says outside."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor


def full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Half-precision inputs become float32 and autocast is off inside; float64 stays as it is.

    Tensors may come alone or in lists.
    """

    @wraps(loss)
    def wrapper(first: Tensor | list[Tensor], *args, **kwargs) -> Tensor:
        one = first if isinstance(first, Tensor) else first[0]
        with torch.autocast(one.device.type, enabled=False):
            return loss(*(_widen(a) for a in (first, *args)), **kwargs)

    return wrapper


def _widen(x):
    if isinstance(x, list):
        return [_widen(one) for one in x]
    half = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if half else x
