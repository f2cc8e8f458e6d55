"""What any rank asks of all ranks in a step: to end after a signal, or to save."""

from collections.abc import Iterable

import torch
from torch import Tensor

from selfsight import distributed
from selfsight.processes import SIGNALS


class Requests:
    """Travels with the loss, in one small all-reduce a step, so that all ranks hear of a request
    after the same step.

    >>> requests = Requests()
    >>> requests.tell(torch.tensor(0.5), [signal.SIGTERM], save=False)
    tensor(0.5000)
    >>> requests.heard() == (signal.SIGTERM, False)
    True
    """

    def __init__(self) -> None:
        self._asked: list[bool] | Tensor = [False] * (len(SIGNALS) + 1)
        self._asked_before = self._asked

    def tell(self, loss: Tensor, signals: Iterable[int], save: bool) -> Tensor:
        """The mean loss of all ranks.

        Args:
            signals: that this rank has caught; save: whether it asks to save.
        """
        caught = set(signals)
        asked = [number in caught for number in SIGNALS] + [save]
        if distributed.world_size() == 1:
            self._asked = asked
            return loss
        told = torch.tensor([0.0, *asked], dtype=loss.dtype).to(loss.device, non_blocking=True)
        told[0] = loss
        told = distributed.mean(told)
        self._asked_before, self._asked = self._asked, told[1:] > 0
        return told[0]

    def heard(self) -> tuple[int, bool]:
        """A signal that any rank has caught, or 0, and whether any asks to save.

        On a GPU as of the step before: its computation needs not to be waited for.
        """
        asked = self._asked
        if isinstance(asked, Tensor):
            asked = asked if asked.device.type == "cpu" else self._asked_before
            asked = asked.tolist() if isinstance(asked, Tensor) else asked
        caught = [number for number, sent in zip(SIGNALS, asked[:-1], strict=True) if sent]
        return (caught or [0])[0], asked[-1]
