"""Functions that the loop calls every few steps or epochs; what they measure is logged."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfsight import blame
from selfsight.errors import UserError
from selfsight.methods.method import Method

# Keys of metrics.jsonl that the loop itself writes.
RESERVED = {"step", "epoch", "loss", "lr", "images_per_second", "seconds", "probe_top1"}
RESERVED |= {"feature_std", "feature_rank", "embedding_std", "embedding_rank"}
RESERVED |= {"alignment", "uniformity"}


@dataclass(frozen=True)
class RunState:
    """A run at the moment of a call.

    Attributes:
        step, steps: done, and of the whole run; epoch: the same as `step` in epochs.
        method: in evaluation mode, with the weights of this step.
        folder: of the run.
    """

    step: int
    steps: int
    epoch: float
    method: Method
    folder: Path
    device: torch.device

    @property
    def backbone(self) -> nn.Module:
        return self.method.backbone

    @property
    def progress(self) -> float:
        """The fraction of training that is done."""
        return self.step / self.steps


Function = Callable[[RunState], Mapping[str, float] | None]


@dataclass(frozen=True)
class Hook:
    """A function of the state of a run, and when it is called; see `every`.

    Attributes:
        after: called with the record of metrics.jsonl that holds what the function returned.
    """

    function: Function
    steps: int = 0
    epochs: int = 0
    after: Callable[[dict[str, Any]], None] | None = None

    def is_due(self, done: int, last: int, per_epoch: int) -> bool:
        """Whether the function is called after this step; it is always called after the last."""
        period = self.steps or self.epochs * per_epoch
        return done == last or done % period == 0

    def call(self, state: RunState) -> dict[str, float]:
        """The metrics that the function returns. Raises: UserError for anything else."""
        with blame.blamed([self.function]):
            found = self.function(state)
        if found is None:
            return {}
        where = blame.named(self.function)
        if not isinstance(found, Mapping):
            raise UserError(f"{where}: returned a {type(found).__name__}; return a dict or None")
        metrics = {}
        for name, value in found.items():
            if not isinstance(name, str) or name in RESERVED:
                raise UserError(f"{where}: returned {name!r}, which the loop writes; rename it")
            try:
                metrics[name] = float(value.detach() if isinstance(value, torch.Tensor) else value)
            except (TypeError, ValueError):
                raise UserError(f"{where}: {name}={value!r:.60} is not a number") from None
        return metrics


def call_all(hooks: Iterable[Hook], state: RunState) -> dict[str, float]:
    """The metrics of all hooks. Raises: UserError if two return one of the same name."""
    metrics: dict[str, float] = {}
    for hook in hooks:
        found = hook.call(state)
        twice = sorted(found.keys() & metrics.keys())
        if twice:
            where = blame.named(hook.function)
            raise UserError(f"{where}: returned {twice[0]!r}, as another hook did; rename it")
        metrics |= found
    return metrics


def every(function: Function, *, steps: int = 0, epochs: int = 0) -> Hook:
    """Call a function every few steps or epochs of a run, and after its last step.

    The first process calls it, the others wait. The method is in evaluation mode. What it returns,
    a dict of numbers or None, goes into metrics.jsonl and to the loggers.

    Args:
        steps, epochs: one of the two, at least 1.
    Raises: UserError if not one of them is given.

    >>> def norm(state):
    ...     return {"norm": sum(p.norm() for p in state.backbone.parameters())}
    >>> hook = every(norm, epochs=1)  # selfsight.pretrain("digits/simclr", hooks=[hook])
    """
    if (steps > 0) == (epochs > 0) or min(steps, epochs) < 0:
        raise UserError(f"every(steps={steps}, epochs={epochs}): give one of them, at least 1")
    return Hook(function, steps, epochs)
