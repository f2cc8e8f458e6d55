"""How the processes of a start find each other, whatever earlier starts have left.

torchrun's agent keeps one store for all starts of its processes (from torch 2.5 on), and gloo, NCCL
and our own keys find in it the addresses and values of processes that are dead. Neither the number
of restarts that the agent tells nor anything else in the environment separates the starts: several
machines count them apart. So each start agrees on a name of its own first, and keeps to the keys
under this name.
"""

import contextlib
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

LEADER = "selfsight/leader"  # the key under which rank 0 says the name
LOOK_EVERY = timedelta(seconds=0.5)  # for another name, as long as the one seen leads nowhere
PAUSE = 0.05  # seconds until then


def meet(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """A part of the store that this start alone uses, this process's rank, and the number of ranks.

    The address is that of the environment, as torchrun sets it.
    Raises: torch's DistStoreError if some of the processes do not come in time.
    """
    store, rank, count = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    mine = uuid.uuid4().hex
    name = _lead(store, mine, count) if rank == 0 else _follow(store, mine, rank, timeout)
    return dist.PrefixStore(name, store), rank, count


def _lead(store: dist.Store, mine: str, count: int) -> str:
    """Rank 0: say the name, and then who has come to it."""
    store.set(LEADER, mine)
    found = [store.get(_key(mine, rank)).decode() for rank in range(1, count)]
    store.set(_key(mine, "all"), " ".join(found))
    return mine


def _follow(store: dist.Store, mine: str, rank: int, timeout: timedelta) -> str:
    """Another rank: come to the name of rank 0, until that says that this very process has come. An
    earlier start's rank 0 cannot say so."""
    end = time.monotonic() + timeout.total_seconds()
    while True:
        name = store.get(LEADER).decode()
        store.set(_key(name, rank), mine)
        everyone = _key(name, "all")
        with contextlib.suppress(dist.DistStoreError):  # not there: another start may lead
            store.wait([everyone], LOOK_EVERY)
            if mine in store.get(everyone).decode().split():
                return name
        if time.monotonic() > end:
            raise dist.DistStoreError("rank 0 of this start did not come in time")
        time.sleep(PAUSE)


def _key(name: str, who: int | str) -> str:
    return f"selfsight/{name}/{who}"
