"""A queue of the keys of earlier batches, which serve as negatives; its state is in state_dict."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight import distributed


class Queue(nn.Module):
    """The last `size` keys of all ranks, first in, first out; initialised with random unit rows.

    `stage` keeps the keys of a batch until `commit`, which the method calls after the step, so the
    keys of a step are never among its own negatives.
    """

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("next", torch.zeros((), dtype=torch.long))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self._full = False
        self._staged: list[Tensor] = []

    def full(self) -> bool:
        """Whether keys have replaced all random rows."""
        # Reading `seen` waits for the device, so it is not read any more once the queue is full.
        self._full = self._full or bool(self.seen >= len(self.keys))
        return self._full

    @torch.no_grad()
    def stage(self, keys: Tensor) -> None:
        """Add the keys (B, D) of this rank, which are normalised here."""
        keys = keys.detach().to(self.keys.dtype)
        self._staged.append(distributed.gather(F.normalize(keys, dim=1)))

    def drop(self) -> None:
        """Remove the staged keys without adding them."""
        self._staged.clear()

    @torch.no_grad()
    def commit(self) -> None:
        """Replace the oldest keys by the staged keys of all ranks."""
        if not self._staged:
            return
        size = len(self.keys)
        new = torch.cat(self._staged)[-size:]
        places = (self.next + torch.arange(len(new), device=new.device)) % size
        self.keys.index_copy_(0, places, new)
        self.next.add_(len(new)).remainder_(size)
        self.seen.add_(len(new))
        self._staged.clear()
