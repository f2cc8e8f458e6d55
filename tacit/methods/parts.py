"""Parts that methods are made of: heads, teacher, queue. All of their state is in state_dict."""

import copy
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tacit import distributed


class BatchNorm(nn.BatchNorm1d):
    """Batch norm of (B, D) over the batch of all ranks, on any device, as in the papers."""

    def forward(self, x: Tensor) -> Tensor:
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


def mlp(*widths: int, norm: bool = True) -> nn.Sequential:
    """Linear layers of the given widths (input, hidden ..., output) with ReLU between them.

    Args:
        norm: batch normalisation before each ReLU; the layer before it then has no bias, which the
            normalisation would cancel.
    """
    *hidden, (inputs, outputs) = pairwise(widths)
    layers: list[nn.Module] = []
    for before, after in hidden:
        layers.append(nn.Linear(before, after, bias=not norm))
        layers += [BatchNorm(after), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class Teacher(nn.Sequential):
    """A copy of modules, run in sequence, that follows them as an exponential moving average.

    Buffers, such as the running statistics of batch normalisation, are the teacher's own. No
    gradient reaches it. Source: mean teacher (arXiv 1703.01780), momentum encoder of MoCo (arXiv
    1911.05722).
    """

    def __init__(self, *students: nn.Module) -> None:
        super().__init__(*(copy.deepcopy(student) for student in students))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    @torch.no_grad()
    def follow(self, *students: nn.Module, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, all tensors in one call."""
        own = list(self.parameters())
        theirs = [p for student in students for p in student.parameters()]
        get_ema_multi_avg_fn(momentum)(own, theirs, None)


class Queue(nn.Module):
    """The last `size` keys of all ranks, first in, first out; starts with random unit rows.

    `stage` holds a batch's keys back until `commit`, which the method calls after the step: the
    keys of a step are never among its own negatives.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("next", torch.zeros((), dtype=torch.long))
        self._staged: list[Tensor] = []

    @torch.no_grad()
    def stage(self, keys: Tensor) -> None:
        """(B, D) keys of this rank, normalised here."""
        keys = keys.detach().to(self.keys.dtype)
        self._staged.append(distributed.gather(F.normalize(keys, dim=1)))

    @torch.no_grad()
    def commit(self) -> None:
        """The staged keys of all ranks take the place of the oldest ones."""
        if not self._staged:
            return
        size = len(self.keys)
        new = torch.cat(self._staged)[-size:]
        places = (self.next + torch.arange(len(new), device=new.device)) % size
        self.keys.index_copy_(0, places, new)
        self.next.add_(len(new)).remainder_(size)
        self._staged.clear()
