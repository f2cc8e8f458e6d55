"""What methods remember between steps: teacher, queue, centre; all of it is in state_dict."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tacit import distributed


class Teacher(nn.Sequential):
    """A copy of modules, run in sequence, that follows them as an exponential moving average.

    Buffers, such as the running statistics of batch normalisation, are the teacher's own. No
    gradient reaches it, and it drops nothing, neither units nor layers. Source: mean teacher (arXiv
    1703.01780), momentum encoder of MoCo (arXiv 1911.05722).
    """

    def __init__(self, *students: nn.Module) -> None:
        super().__init__(*(copy.deepcopy(student) for student in students))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def train(self, mode: bool = True) -> "Teacher":
        """Only batch normalisation trains; dropout and stochastic depth are for students."""
        super().train(mode)
        for module in self.modules():
            module.training = mode and hasattr(module, "running_mean")
        return self

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
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self._full = False
        self._staged: list[Tensor] = []

    def full(self) -> bool:
        """Whether keys of training have taken the place of all random ones."""
        self._full = self._full or bool(self.seen >= len(self.keys))  # reads the device till then
        return self._full

    @torch.no_grad()
    def stage(self, keys: Tensor) -> None:
        """(B, D) keys of this rank, normalised here."""
        keys = keys.detach().to(self.keys.dtype)
        self._staged.append(distributed.gather(F.normalize(keys, dim=1)))

    def drop(self) -> None:
        """Forget what was staged."""
        self._staged.clear()

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
        self.seen.add_(len(new))
        self._staged.clear()


class Center(nn.Module):
    """A running mean of all ranks' teacher outputs; a step's own outputs enter at its end.

    Source: DINO, eq. 4 (arXiv 2104.14294).
    """

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(dim))
        self._staged: list[Tensor] = []

    @torch.no_grad()
    def stage(self, outputs: Tensor) -> None:
        """(..., dim) of this rank, as many on every rank."""
        mean = outputs.detach().flatten(0, -2).to(self.value.dtype).mean(0)
        self._staged.append(distributed.mean(mean))

    @torch.no_grad()
    def commit(self) -> None:
        """center = momentum * center + (1 - momentum) * mean of what was staged."""
        if self._staged:
            self.value.lerp_(torch.stack(self._staged).mean(0), 1 - self.momentum)
            self._staged.clear()
