"""The collectives that methods and the engine use; with one process each is the identity.

A loss is a mean over this rank's samples, and DistributedDataParallel averages gradients over
ranks. Gradients of a gathered tensor are summed over ranks; the result is then the gradient of the
mean over the batch of all ranks.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from selfsight.errors import UserError, described

T = TypeVar("T")


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def cores() -> int:
    """CPU cores per process: those this process may use / processes of the run on this machine."""
    mine = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return max(1, len(mine) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def setup(device: torch.device) -> torch.device:
    """Join the process group if torchrun started this process; returns this rank's device."""
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


def is_of_another(error: RuntimeError) -> bool:
    """Whether a collective failed because another process has ended."""
    kinds = ("DistBackendError", "DistNetworkError", "DistStoreError")
    told = ("Connection closed by peer", "Connection reset by peer", "gloo/transport")
    return type(error).__name__ in kinds or any(words in str(error) for words in told)


def by_all(work: Callable[[], T], alike: Callable[[T], dict[str, Any]] | None = None) -> T:
    """What `work` returns here, once it has succeeded on every rank.

    Args:
        alike: of a result what must be the same on all ranks, by name.
    Raises: UserError on every rank, so that none waits for one that failed: the mistake of the
        first rank that made one, or what differs from rank 0.
    """
    if world_size() == 1:
        return work()
    result, error, told = None, None, {}
    try:
        result = work()
        told = {} if alike is None else alike(result)
    except Exception as raised:
        error = raised
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, (error and _in_words(error), told))
    if error is not None and not isinstance(error, (UserError, OSError, MemoryError)):
        raise error  # no mistake of a user: its traceback is of use
    problem = _first_problem(found)
    if problem is None:
        return result
    shared = UserError(problem)
    shared.everywhere = True
    raise shared from None


def by_first(work: Callable[[], Any]) -> Any:
    """What `work` returns on rank 0, on every rank; no other rank calls it. Raises: as `by_all`."""
    return share(by_all(work if rank() == 0 else lambda: None))


def _first_problem(found: list[tuple[str | None, dict[str, Any]]]) -> str | None:
    """What is wrong, of the first rank where something is. Rank 0 makes mistakes without a name."""
    count = len(found)
    for rank, (words, _) in enumerate(found):
        if words is not None:
            return words if rank == 0 else f"process {rank} of {count}: {words}"
    first = found[0][1]
    for rank, (_, told) in enumerate(found):
        odd = [key for key in (first | told) if first.get(key) != told.get(key)]
        if odd:
            shown = "; ".join(
                f"{key}={told.get(key, '(absent)')} instead of {first.get(key, '(absent)')}"
                for key in odd[:3]
            )
            more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
            return (
                f"process {rank} of {count} differs from process 0: {shown}{more}; start all with "
                f"the same keys and the same data"
            )
    return None


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError):
        return described(error)
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


class _Gather(torch.autograd.Function):
    """The rows of all ranks in rank order; backward: the sum over ranks, of it this rank's rows."""

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
    """The value of rank 0, any object that can be pickled, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def every(value: Any) -> list[Any]:
    """What each rank gives, any small object that can be pickled, in rank order, on every rank."""
    found: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, value)
    return found


def maximum(value: float, device: torch.device) -> float:
    """The largest value of all ranks, on every rank."""
    if world_size() == 1:
        return value
    return float(all_max(torch.tensor(float(value), device=device)))
