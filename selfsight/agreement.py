"""How the processes of a run join, agree and leave: rank 0 decides and all hear it, and a mistake
of one ends them all, with one line. With one process each function just calls the work."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from selfsight.connect import connect, is_of_another, lost, met
from selfsight.distributed import rank, world_size
from selfsight.errors import UserError, with_remedy
from selfsight.peers import Peers

T = TypeVar("T")
Keys = tuple[str | int, ...]  # that lead to a tensor of a state
MISTAKES = (UserError, OSError, MemoryError)  # one line says what is wrong
SECONDS = 1800.0  # that a process waits for another one that gives no sign of life
MARGIN = 15.0  # seconds that a collective waits for longer
BRIEF = 10.0  # seconds in which a process that has failed joins the others, to tell them
_peers: tuple[Any, Peers] | None = None  # a process group, and the processes in it
_has_begun_to_join = False  # even if it failed, or has left again
_mistake: UserError | None = None  # that ended the last group


@contextlib.contextmanager
def joined(
    device: torch.device, seconds: float = SECONDS, pause: float = 0.0
) -> Iterator[torch.device]:
    """Work with the other processes, if torchrun started this one; yields this rank's device.

    Args:
        seconds: that a process waits for another one that gives no sign of life.
        pause: the longest, in seconds, that a process may do something else than the others.
    Raises: UserError on every rank, within 5 seconds, for a mistake of any of them.
    """
    is_given = dist.is_available() and dist.is_initialized()  # by a user's own program
    try:
        yield setup(device, seconds, pause)
    except Exception as error:
        if (world_size() == 1 and _peers is None) or getattr(error, "everywhere", False):
            raise
        theirs = _mistake_of_another(error, seconds)
        if theirs is not None:
            raise theirs from None
        heard = peers().tell(_named(with_remedy(error)))
        if not heard or not isinstance(error, MISTAKES):
            raise  # nobody else prints it; or its traceback is of use
        raise peers().mistake() from None
    finally:
        teardown(is_given)


def _mistake_of_another(error: Exception, seconds: float) -> UserError | None:
    """The mistake of another process, if this error follows from it."""
    if not isinstance(error, RuntimeError) or not is_of_another(error):
        return None
    return peers().hear() or lost(str(error), seconds)


def setup(device: torch.device, seconds: float, pause: float) -> torch.device:
    """Join the process group if torchrun started this process. Args and returns: see `joined`."""
    global _peers, _has_begun_to_join
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        _has_begun_to_join = True
        store, place, count = met(seconds)
        _peers = (None, Peers(store, place, count, seconds, watch=True))  # there is no group yet
        # Peers see a lost process first, and say which it is.
        connect(backend, store, place, count, seconds + pause + MARGIN)
        _peers = (dist.group.WORLD, _peers[1])
    return device


def before_joining(error: Exception) -> UserError | None:
    """End the processes that wait in `joined` for this one, which has failed before it.

    Returns: the mistake that ends all, if they have heard of it.
    """
    if _has_begun_to_join or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    try:
        store, place, count = met(BRIEF)
    except UserError:  # nobody waits
        return None
    others, words = Peers(store, place, count, BRIEF, watch=True), with_remedy(error)
    heard = others.tell(words if place == 0 else f"process {place} of {count}: {words}")
    others.close()
    return others.mistake() if heard else None


def teardown(is_given: bool) -> None:
    """Leave the others, and the process group, unless a user's own program has made it."""
    global _peers, _mistake
    if _peers is not None:
        _mistake = _peers[1].mistake()  # before the others are waited for: a signal may come
        peers().close()
    if dist.is_available() and dist.is_initialized() and not is_given:
        dist.destroy_process_group()
    _peers = None


def peers() -> Peers:
    """The processes of the group; one that a user's own program has made is not watched."""
    global _peers
    if _peers is None or _peers[0] is not dist.group.WORLD:
        store = dist.distributed_c10d._get_default_store()
        place, count = dist.get_rank(), dist.get_world_size()
        _peers = (dist.group.WORLD, Peers(store, place, count, SECONDS, watch=False))
    return _peers[1]


def mistake() -> UserError | None:
    """The mistake that has ended all processes, if this one heard of it before it left."""
    return _mistake


def barrier() -> None:
    """Wait for all ranks, for as long as they are alive."""
    if world_size() > 1:
        peers().meet(None, lambda _: None)


def by_all(work: Callable[[], T], alike: Callable[[T], dict[str, Any]] | None = None) -> T:
    """What `work` returns here, once it has succeeded on every rank. A rank waits for the others
    without a timeout, for as long as they are alive.

    Args:
        alike: of a result what must be the same on all ranks, by name.
    Raises: UserError on every rank, so that none waits for one that failed: the mistake of the
        first rank that made one, or what differs from rank 0.
    """
    return work() if world_size() == 1 else _agreed(work, alike)[0]


def by_first(work: Callable[[], Any]) -> Any:
    """What `work` returns on rank 0, on every rank; no other rank calls it. Raises: as `by_all`."""
    if world_size() == 1:
        return work()
    return _agreed(work if rank() == 0 else lambda: None, None, share=True)[1]


def _agreed(
    work: Callable[[], T], alike: Callable[[T], dict[str, Any]] | None, share: bool = False
) -> tuple[T, Any]:
    """What `work` returns here and, if asked, on rank 0."""
    result, error, facts = None, None, {}
    try:
        result = work()
        facts = {} if alike is None else alike(result)
    except Exception as raised:
        error = raised

    def decide(found: dict[int, tuple[str | None, dict[str, Any]]]) -> tuple[str | None, Any, bool]:
        problem, all_came = _first_problem(found), len(found) == world_size()
        return problem, result if share and problem is None else None, all_came

    words = None if error is None else with_remedy(error)
    problem, shared, all_came = peers().meet((words, facts), decide, words and _named(words))
    if error is not None and not isinstance(error, MISTAKES):
        raise error  # its traceback is of use
    if problem is None:
        return result, shared
    if rank() == 0 and not all_came:
        peers().tell(problem)  # to those that are still at work
    same = UserError(problem)
    same.everywhere = True
    raise same from None


def _first_problem(found: dict[int, tuple[str | None, dict[str, Any]]]) -> str | None:
    """What is wrong, of the first rank where something is. Rank 0 makes mistakes without a name."""
    count = world_size()
    for place, (words, _) in found.items():
        if words is not None:
            return _named(words, place)
    first = found[0][1]
    for place, (_, facts) in found.items():
        odd = [key for key in (first | facts) if first.get(key) != facts.get(key)]
        if odd:
            shown = "; ".join(
                f"{key}={facts.get(key, '(absent)')} instead of {first.get(key, '(absent)')}"
                for key in odd[:3]
            )
            more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
            return (
                f"process {place} of {count} differs from process 0: {shown}{more}; start all with "
                f"the same keys and the same data"
            )
    return None


def _named(words: str, place: int | None = None) -> str:
    """The words with the process that they are of (default: this one); rank 0 is not named."""
    place = rank() if place is None else place
    return words if place == 0 else f"process {place} of {world_size()}: {words}"


def gather_objects(value: Any) -> list[Any]:
    """The values of all ranks in rank order, any objects that can be pickled."""
    if world_size() == 1:
        return [value]
    return peers().meet(value, lambda found: [found[place] for place in sorted(found)])


def share(value: Any) -> Any:
    """The value of rank 0, any object that can be pickled, on every rank."""
    return by_first(lambda: value)


def state_by_first(
    work: Callable[[], Any],
    device: torch.device,
    keep: Callable[[Keys, Tensor], Tensor] = lambda _, tensor: tensor,
) -> Any:
    """As `by_first`, of dictionaries, lists and tensors of any size: each tensor is sent for
    itself.

    Args:
        device: of the tensors that the other ranks get.
        keep: what of a tensor a rank keeps, by the keys that lead to it.
    """
    if world_size() == 1:
        return work()
    tensors: list[Tensor] = []
    plan = by_first(lambda: _planned(work(), tensors))
    return _received(plan, iter(tensors), device, keep)


@dataclass(frozen=True)
class _Sent:
    """In place of a tensor that is sent for itself."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: torch.memory_format


def _planned(value: Any, tensors: list[Tensor]) -> Any:
    """The state with `_Sent` in place of its tensors, which are added to the list in order."""
    if isinstance(value, Tensor):
        tensors.append(value)
        is_last = value.ndim == 4 and not value.is_contiguous()
        layout = torch.channels_last if is_last else torch.contiguous_format
        return _Sent(tuple(value.shape), value.dtype, layout)
    if isinstance(value, dict):
        return {key: _planned(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_planned(item, tensors) for item in value)
    return value


def _received(
    plan: Any,
    tensors: Iterator[Tensor],
    device: torch.device,
    keep: Callable[[Keys, Tensor], Tensor],
    keys: Keys = (),
) -> Any:
    """The state, each of whose tensors rank 0 sends and the others receive."""
    if isinstance(plan, _Sent):
        empty = functools.partial(torch.empty, plan.shape, dtype=plan.dtype, device=device)
        own = next(tensors).detach() if rank() == 0 else empty()
        tensor = own.to(device).contiguous(memory_format=plan.layout)
        if tensor.numel():
            in_order = tensor.permute(0, 2, 3, 1) if plan.layout == torch.channels_last else tensor
            dist.broadcast(in_order.reshape(-1).view(torch.uint8), src=0)  # gloo sends no bool
        return keep(keys, own if rank() == 0 else tensor)
    more = tensors, device, keep
    if isinstance(plan, dict):
        return {key: _received(item, *more, (*keys, key)) for key, item in plan.items()}
    if isinstance(plan, (list, tuple)):
        return type(plan)(_received(item, *more, (*keys, n)) for n, item in enumerate(plan))
    return plan
