"""Moving averages: of a student's weights (teacher), and of a teacher's outputs (centre)."""

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from selfsight import distributed


class EMA(nn.Sequential):
    """A sequence of modules whose weights are an exponential moving average of the students'.

    It starts as a copy of them. Only parameters are averaged: buffers, such as the running
    statistics of batch normalisation, are computed by the teacher itself. It has no gradients, and
    dropout and stochastic depth are off. Source: mean teacher (arXiv 1703.01780), momentum encoder
    of MoCo (arXiv 1911.05722).

    >>> student = nn.Linear(8, 2)
    >>> teacher = EMA(student)
    >>> teacher(torch.rand(4, 8)).requires_grad
    False
    >>> teacher.ema_update(student, momentum=0.99)
    """

    def __init__(self, *students: nn.Module) -> None:
        super().__init__(*(copy.deepcopy(student) for student in students))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def train(self, mode: bool = True) -> "EMA":
        """Set the mode of batch normalisation; all other modules stay in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            module.training = mode and hasattr(module, "running_mean")
        return self

    @torch.no_grad()
    def ema_update(self, *students: nn.Module, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, for all parameters at once."""
        own = list(self.parameters())
        theirs = [p for student in students for p in student.parameters()]
        get_ema_multi_avg_fn(momentum)(own, theirs, None)


class Center(nn.Module):
    """A moving average of the teacher outputs of all ranks.

    `stage` keeps the outputs of a step until `commit`, which the method calls after the step.
    Source: DINO, eq. 4 (arXiv 2104.14294).
    """

    value: Tensor

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(dim))
        self._staged: list[Tensor] = []

    @torch.no_grad()
    def stage(self, outputs: Tensor) -> None:
        """Add outputs (..., dim) of this rank; every rank must add the same number."""
        mean = outputs.detach().flatten(0, -2).to(self.value.dtype).mean(0)
        self._staged.append(distributed.mean(mean))

    @torch.no_grad()
    def stage_some(self, outputs: Tensor) -> None:
        """Add outputs (n, dim) of this rank; n may differ between ranks, and be 0."""
        outputs = outputs.detach().to(self.value.dtype)
        total = distributed.all_sum(outputs.sum(0))
        count = distributed.all_sum(total.new_tensor(float(len(outputs))))
        self._staged.append(torch.where(count > 0, total / count.clamp_min(1), self.value))

    @torch.no_grad()
    def commit(self) -> None:
        """center = momentum * center + (1 - momentum) * mean of the staged outputs."""
        if self._staged:
            self.value.lerp_(torch.stack(self._staged).mean(0), 1 - self.momentum)
            self._staged.clear()
