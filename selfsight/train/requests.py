"""What any rank asks of all ranks in a step: to end after a signal, or to save."""

from collections.abc import Collection

import torch
from torch import Tensor

from selfsight import distributed
from selfsight.processes import SIGNALS


class Requests:
    """Travels with the loss, in one small all-reduce a step, so that all ranks hear of a request
    after the same step: that in which it came, or the next.

    Args:
        signals: that this rank has caught; the list grows when one comes.

    >>> requests = Requests([signal.SIGTERM])
    >>> requests.tell(torch.tensor(0.5), save=False)
    tensor(0.5000)
    >>> requests.heard() == (signal.SIGTERM, False)
    True
    """

    def __init__(self, signals: Collection[int]) -> None:
        self._signals, self._save = signals, False
        self._told = self._told_before = torch.zeros(len(SIGNALS) + 1)

    def tell(self, loss: Tensor, save: bool) -> Tensor:
        """The mean loss of all ranks.

        Args:
            save: whether this rank asks to save.
        """
        self._save = save
        if distributed.world_size() == 1:
            return loss
        told = torch.tensor([0.0, *self._own()], dtype=loss.dtype)
        told = told.to(loss.device, non_blocking=True)
        told[0] = loss
        told = distributed.mean(told)
        self._told_before, self._told = self._told, told[1:] > 0
        return told[0]

    def _own(self) -> list[bool]:
        return [number in self._signals for number in SIGNALS] + [self._save]

    def heard(self) -> tuple[int, bool]:
        """A signal that any rank has caught, or 0, and whether any asks to save.

        On several GPUs as of the step before: the computation of this one is not waited for.
        """
        asked = self._own()
        if distributed.world_size() > 1:
            asked = (self._told if self._told.is_cpu else self._told_before).tolist()
        caught = [number for number, sent in zip(SIGNALS, asked[:-1], strict=True) if sent]
        return (caught or [0])[0], bool(asked[-1])
