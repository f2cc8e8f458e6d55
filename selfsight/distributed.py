"""The collectives that methods and the engine use; with one process each is the identity.

A loss is a mean over this rank's samples, and DistributedDataParallel averages gradients over
ranks. Gradients of a gathered tensor are summed over ranks; the result is then the gradient of the
mean over the batch of all ranks.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def local_world_size() -> int:
    """How many processes of the run are on this machine, as torchrun says; else 1."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def local_rank() -> int:
    """The number of this process among those of the run on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if local_world_size() > 1 else 0


def cores() -> int:
    """CPU cores per process: those this process may use / processes of the run on this machine."""
    mine = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return max(1, len(mine) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class _Gather(torch.autograd.Function):
    """The rows of all ranks in rank order; backward: the sum over ranks, of it this rank's rows.

    Each rank receives only its own rows of that sum: a reduce-scatter sends half of what an
    all-reduce of the gradient of all rows would.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        rows = x.new_empty(world_size() * len(x), *x.shape[1:])
        dist.all_gather_into_tensor(rows, x.contiguous())
        return rows

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        own = gradient.new_empty(len(gradient) // world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own


class _Sum(torch.autograd.Function):
    """The sum over ranks; backward: the sum of the gradients over ranks."""

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


def mirror(x: Tensor) -> Tensor:
    """(B, ...), without gradient, of the rank at the mirror place: rank W - 1 for rank 0."""
    here = rank()
    there = world_size() - 1 - here
    if there == here:
        return x
    x = x.contiguous()
    found = torch.empty_like(x)
    both = dist.P2POp(dist.isend, x, there), dist.P2POp(dist.irecv, found, there)
    for request in dist.batch_isend_irecv(list(both)):
        request.wait()
    return found


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


def maximum(value: float, device: torch.device) -> float:
    """The largest value of all ranks, on every rank."""
    if world_size() == 1:
        return value
    return float(all_max(torch.tensor(float(value), device=device)))
