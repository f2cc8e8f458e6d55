"""Whether all processes of a run still hold the same state. With DistributedDataParallel they do,
bit for bit: each applies the same gradient to the same weights. If a memory, a GPU or a network
changes a number, a process goes on with other weights, and no later step makes them equal again.

What is compared is a sum of 64 bits for each part, computed where its tensors are.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from selfsight import distributed
from selfsight.errors import UserError, some

COLUMNS = 1024  # of the matrix of 64-bit numbers in which a tensor is summed
MIX = 0x5DEECE66C  # even: a change of one bit then never cancels itself, see `digest`


def check_replicas(
    step: int, parts: Mapping[str, nn.Module | torch.optim.Optimizer], kept: str
) -> None:
    """Compare the parts of a training over all processes.

    Buffers of modules that are not of this package are left out: those of an encoder, such as the
    running statistics of its batch normalisation, each process keeps for itself. So are tensors
    that are split over the processes.
    Args:
        step: after which the parts are as they are.
        parts: by name; "method" is compared network by network.
        kept: says which checkpoint remains, at the end of the message.
    Raises: UserError on all processes, if one of them holds another state.
    """
    if distributed.world_size() == 1:
        return
    device = next(parts["method"].parameters()).device
    sums = {name: _sum(tensors, device) for name, tensors in _tensors(parts).items()}
    mine = torch.stack([*sums.values()])  # (P,)
    every = [torch.empty_like(mine) for _ in range(distributed.world_size())]
    dist.all_gather(every, mine)
    rows = [tuple(row.tolist()) for row in every]
    (usual, count), *_ = Counter(rows).most_common(1)
    if count == len(rows):
        return
    odd = [rank for rank, row in enumerate(rows) if row != usual]
    differ = [name for n, name in enumerate(sums) if any(rows[r][n] != usual[n] for r in odd)]
    error = UserError(
        f"Step {step}: {_whose(odd, len(rows))} in {', '.join(differ)}: a memory, a GPU or the "
        f"network has changed numbers. Nothing of this step is saved; {kept}. The same command "
        f"continues from there; if it happens again, do without that machine"
    )
    error.everywhere = True
    raise error


def _whose(odd: list[int], count: int) -> str:
    """Which processes differ from most others, in words; of two nobody knows which is right."""
    if 2 * len(odd) >= count:
        return f"the {count} processes differ from one another"
    ranks = some(str(rank) for rank in odd)
    word = "process" if len(odd) == 1 else "processes"
    return f"{word} {ranks} of {count} differ{'s' if len(odd) == 1 else ''} from the others"


def _tensors(parts: Mapping[str, nn.Module | torch.optim.Optimizer]) -> dict[str, list[Tensor]]:
    """The tensors that must be equal in all processes, by part, each part in one order."""
    found: dict[str, list[Tensor]] = {}
    for name, part in parts.items():
        if isinstance(part, torch.optim.Optimizer):
            state = part.state_dict()["state"]
            found[name] = [value for number in sorted(state) for value in _in(state[number])]
            continue
        own = _own_buffers(part)
        for key, value in part.state_dict().items():
            if key not in own:
                label = key.partition(".")[0] if name == "method" else name
                found.setdefault(label, []).extend(_in(value))
    return {name: tensors for name, tensors in found.items() if tensors}


def _in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, but those that are split over the processes."""
    if isinstance(value, Tensor) and not hasattr(value, "to_local"):
        yield value
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield from _in(value[key])


def _own_buffers(module: nn.Module) -> set[str]:
    """The names of the buffers that each process keeps for itself, in the module's state."""
    return {
        f"{name}.{key}".lstrip(".")
        for name, part in module.named_modules()
        if not type(part).__module__.startswith("selfsight.")
        for key, _ in part.named_buffers(recurse=False)
    }


def _sum(tensors: list[Tensor], device: torch.device) -> Tensor:
    """A number () int64 of several tensors, in which each has an odd factor of its own."""
    sums = torch.stack([digest(tensor).to(device) for tensor in tensors])
    return (sums * (2 * torch.arange(len(sums), device=device) + 1)).sum()


def digest(tensor: Tensor) -> Tensor:
    """A number () int64 of the bits of a tensor, modulo 2^64, on its device.

    The bits are read as 64-bit numbers x[i, j] of a matrix. The number is the sum of
    x[i, j] * (2 i + 1 + MIX * (2 j + 1)). As MIX is even, each factor is odd: the change of a
    single bit always changes the number, and so does the exchange of two values.

    >>> a = torch.zeros(3)
    >>> int(digest(a)) == int(digest(a.clone())), int(digest(a)) == int(digest(a + 1e-40))
    (True, False)
    """
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    whole = len(flat) // (8 * COLUMNS) * 8 * COLUMNS
    rest = flat.new_zeros(8 * COLUMNS)
    rest[: len(flat) - whole] = flat[whole:]
    head = flat[:whole] if flat.storage_offset() % 8 == 0 else flat[:whole].clone()
    # each part is summed along rows and along columns, with no copy of its numbers
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for part, first in ((head, 0), (rest, whole // (8 * COLUMNS))):
        matrix = part.view(torch.int64).view(-1, COLUMNS)
        rows = 2 * torch.arange(first, first + len(matrix), device=tensor.device) + 1
        columns = 2 * torch.arange(COLUMNS, device=tensor.device) + 1
        total = total + (matrix.sum(1) * rows).sum() + MIX * (matrix.sum(0) * columns).sum()
    return total
