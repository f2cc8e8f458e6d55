"""What any rank asks of all ranks in a step: to end after a signal, or to save."""

from collections.abc import Collection

import torch
from torch import Tensor

from selfsight import distributed
from selfsight.processes import SIGNALS

Asked = tuple[Tensor, torch.cuda.Event | None]


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
        nothing = torch.zeros(len(SIGNALS) + 1)
        # What all ranks have asked: in the step before, and in this one; on a GPU with the event
        # after which it is on the CPU.
        self._before: Asked = (nothing, None)
        self._now: Asked = (nothing, None)

    def tell(self, loss: Tensor, save: bool) -> Tensor:
        """The mean loss of all ranks.

        Args:
            save: whether this rank asks to save.
        """
        self._save = save
        if distributed.world_size() == 1:
            return loss
        asked = torch.tensor([0.0, *self._own()], dtype=loss.dtype)
        asked = asked.to(loss.device, non_blocking=True)
        asked[0] = loss
        mean = distributed.mean(asked)
        on_cpu = (mean[1:] > 0).to("cpu", non_blocking=True)
        copied = torch.cuda.Event() if mean.is_cuda else None
        if copied is not None:
            copied.record()
        self._before, self._now = self._now, (on_cpu, copied)
        return mean[0]

    def _own(self) -> list[bool]:
        return [number in self._signals for number in SIGNALS] + [self._save]

    def heard(self) -> tuple[int, bool]:
        """A signal that any rank has caught, or 0, and whether any asks to save.

        On several GPUs as of the step before: the computation of this one is not waited for.
        """
        asked = self._own()
        if distributed.world_size() > 1:
            found, copied = self._now if self._now[1] is None else self._before
            if copied is not None:
                copied.synchronize()
            asked = found.tolist()
        caught = [number for number, sent in zip(SIGNALS, asked[:-1], strict=True) if sent]
        return (caught or [0])[0], bool(asked[-1])
