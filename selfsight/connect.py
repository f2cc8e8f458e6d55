"""How the processes of a run find each other: first in a store, whose address torchrun tells them,
then by a connection to each. Other addresses or networks than meant are the usual mistakes."""

import os
from datetime import timedelta

import torch.distributed as dist

from selfsight.errors import UserError
from selfsight.meeting import meet
from selfsight.peers import DOWN

UNREACHABLE = ("Connection timed out", "No route to host", "Network is unreachable")


def met(seconds: float) -> tuple[dist.Store, int, int]:
    """See `meet`.

    Raises: UserError if one is missing after `seconds`.
    """
    try:
        return meet(timedelta(seconds=seconds))
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


def is_of_another(error: RuntimeError) -> bool:
    """Whether a collective failed because another process has ended."""
    kinds = ("DistBackendError", "DistNetworkError", "DistStoreError")
    said = ("Connection closed by peer", "Connection reset by peer", "gloo/transport", "Timed out")
    return type(error).__name__ in kinds or any(words in str(error) for words in said)


def lost(words: str, seconds: float) -> UserError | None:
    """The mistake of an error that says that the network is down; None of any other.

    Args:
        words: of the error; seconds: that a process waits for another one.
    """
    if "Timed out" in words:
        why = (
            f"timeout_minutes={seconds / 60:g}: another process was waited for in a step for "
            f"longer: {DOWN}"
        )
    elif any(reason in words for reason in UNREACHABLE):
        why = f"the connection to another process is lost: {DOWN}"
    else:
        return None
    return alone(why)


def alone(words: str) -> UserError:
    """A mistake that other machines may not hear of: one process of each machine prints it."""
    error = UserError(words)
    error.everywhere = os.environ.get("LOCAL_RANK", "0") != "0"
    return error


def _where() -> str:
    return ":".join(os.environ.get(name, "(not set)") for name in ("MASTER_ADDR", "MASTER_PORT"))


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
