"""The few collectives that methods and the engine need; each is the identity with one process.

Every loss is a mean over this rank's samples and DistributedDataParallel averages gradients over
ranks, so gradients that arrive at a gathered tensor are summed over ranks: the whole is the
gradient of the mean over the global batch.
"""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def cores() -> int:
    """CPU cores for this process: those that it may use, shared by the processes of its machine."""
    mine = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return max(1, len(mine) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def setup(device: torch.device) -> torch.device:
    """Join the group that torchrun describes, if there is one; returns this rank's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    return device


def teardown() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    """All ranks' rows in rank order; the gradient is summed over ranks, each takes its part."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


class _Sum(torch.autograd.Function):
    """The sum over ranks; so is its gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


def gather(x: Tensor) -> Tensor:
    """(B, ...) on each rank -> (W * B, ...) in rank order, differentiable."""
    return _Gather.apply(x) if world_size() > 1 else x


def all_sum(x: Tensor) -> Tensor:
    """The elementwise sum over ranks, differentiable."""
    return _Sum.apply(x) if world_size() > 1 else x


def mean(x: Tensor) -> Tensor:
    """The elementwise mean over ranks, without gradient."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world_size()


def all_max(x: Tensor) -> Tensor:
    """The elementwise maximum over ranks, without gradient."""
    if world_size() > 1:
        x = x.detach().clone()
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def share(value: Any) -> Any:
    """Rank 0's value, whatever it is, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def maximum(value: float, device: torch.device) -> float:
    """The largest value of any rank; every rank gets the same answer."""
    if world_size() == 1:
        return value
    values = torch.tensor(float(value), device=device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return float(values)
