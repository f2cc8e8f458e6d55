"""How the processes of a run find each other: first in a store, whose address torchrun tells them,
then by a connection to each. Other addresses or networks than meant are the usual mistakes."""

import os
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from selfsight.errors import UserError


def met(seconds: float) -> tuple[dist.Store, int, int]:
    """The store, once all processes are there; the rank of this one, and how many there are.

    Raises: UserError if one is missing after `seconds`.
    """
    try:
        return next(rendezvous("env://", timeout=timedelta(seconds=seconds)))
    except (RuntimeError, ValueError) as error:
        raise alone(
            f"{_where()} (MASTER_ADDR:MASTER_PORT): not all {os.environ['WORLD_SIZE']} processes "
            f"have met there within timeout_minutes={seconds / 60:g} ({_reason(error)}). Start all "
            f"of them with the same address, which each machine can reach"
        ) from None


def connect(backend: str, store: dist.Store, rank: int, count: int, seconds: float) -> None:
    """Make the process group of all.

    Args:
        seconds: that a collective waits for a process.
    Raises: UserError if this process cannot reach another one.
    """
    limit = timedelta(seconds=seconds)
    store.set_timeout(limit)
    own = dist.PrefixStore("default_pg", store)
    try:
        dist.init_process_group(backend, timeout=limit, store=own, rank=rank, world_size=count)
    except RuntimeError as error:
        name = f"{backend.upper()}_SOCKET_IFNAME"
        raise UserError(
            f"{name}={os.environ.get(name, '(not set)')}: the processes have met at {_where()}, "
            f"but process {rank} of {count} cannot reach another one ({_reason(error)}). Set "
            f"{name} on each machine to its network interface that leads to the others"
        ) from None


def alone(words: str) -> UserError:
    """A mistake that other machines may not hear of: one process of each machine prints it."""
    error = UserError(words)
    error.everywhere = os.environ.get("LOCAL_RANK", "0") != "0"
    return error


def _where() -> str:
    return ":".join(os.environ.get(name, "(not set)") for name in ("MASTER_ADDR", "MASTER_PORT"))


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
