"""Running averages that methods keep: a teacher's weights, the centre of its outputs."""

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from selfsight import distributed


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
    def ema_update(self, *students: nn.Module, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, all tensors in one call."""
        own = list(self.parameters())
        theirs = [p for student in students for p in student.parameters()]
        get_ema_multi_avg_fn(momentum)(own, theirs, None)


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
