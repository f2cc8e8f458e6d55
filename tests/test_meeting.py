"""The processes of a start find each other in a store that earlier starts have written."""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch.distributed as dist

from selfsight.meeting import LEADER, _follow, _lead

SOON = timedelta(seconds=20)


def at_once(*works: Callable[[], str]) -> list[str]:
    found: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda n=n, work=work: found.update({n: work()}), daemon=True)
        for n, work in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [found[n] for n in range(len(works))]


def start(store: dist.Store, number: int, ranks: int = 3) -> list[str]:
    """The name that each rank found; the others look before rank 0 has said its own."""
    others = [lambda r=r: _follow(store, f"{number}-{r}", r, SOON) for r in range(1, ranks)]

    def first() -> str:
        threading.Event().wait(0.2)
        return _lead(store, f"{number}-0", ranks)

    return at_once(first, *others)


def test_each_start_has_a_name_of_its_own():
    """Also after one that died at any moment: before rank 0 knew the others, or after it."""
    store = dist.HashStore()
    store.set_timeout(SOON)
    assert start(store, 1) == ["1-0"] * 3
    assert start(store, 2) == ["2-0"] * 3
    store.set(LEADER, "dead")  # and no more
    assert start(store, 3) == ["3-0"] * 3


def test_a_start_without_rank_0_ends_in_time():
    store = dist.HashStore()
    store.set_timeout(SOON)
    store.set(LEADER, "dead")
    with pytest.raises(dist.DistStoreError, match="rank 0 of this start"):
        _follow(store, "1-1", 1, timedelta(seconds=0.6))
