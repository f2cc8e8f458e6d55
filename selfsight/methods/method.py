"""The contract between a method and the engine."""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from selfsight.batch import Batch
from selfsight.config import Config

__all__ = ["Batch", "Method", "MethodConfig", "Output", "Paper"]


class MethodConfig(Config):
    """Base of the methods' own configuration classes; each adds `name: Literal[...]`."""


@dataclass(frozen=True)
class Output:
    """What a forward pass gives back.

    Attributes:
        loss: scalar, the mean over this rank's samples.
        features: (B, D) the encoder's features of one view; the online probe reads them, detached.
        embeddings: of one or two views (B, E), in the space where the loss compares, or nothing;
            the collapse monitor reads them, detached.
    """

    loss: Tensor
    features: Tensor
    embeddings: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    year: int
    arxiv: str


class Method(nn.Module, ABC):
    """A way to pretrain `self.backbone`. Knows no loader, optimizer, rank or device.

    Everything with requires_grad is optimised; what changes with time happens in the two hooks,
    with progress, the fraction of training done, in [0, 1].

    Class attributes:
        default_views: the preset of the paper's views.
        view_count: the least and the greatest number of views it takes (None: any).
        needs: of "teacher", "queue", "multi-crop", "ViT", "labels", what it cannot do without.
        constant_lr: names of members whose learning rate does not follow the schedule.
        remedy: what to change if all embeddings become the same; None: nobody watches them.
    """

    default_views: ClassVar[str] = "simclr"
    view_count: ClassVar[tuple[int, int | None]] = (2, 2)
    needs: ClassVar[tuple[str, ...]] = ()
    constant_lr: ClassVar[tuple[str, ...]] = ()
    remedy: ClassVar[str | None] = "lower optimizer.lr"

    def __init__(self, backbone: nn.Module, config: MethodConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """The loss of one batch; changes no state that the next forward reads."""

    def after_backward(self, progress: float) -> None:
        """Between backward and the optimizer's step."""

    def after_step(self, progress: float) -> None:
        """After the optimizer's step: teachers move, queues take the keys of the step."""

    def rate(self, name: str) -> float:
        """The factor on the learning rate of the parameter of this name."""
        return 1.0

    @classmethod
    def paper(cls) -> Paper:
        """Read from the head of the docstring: title (authors, venue, arXiv number)."""
        text = " ".join((cls.__doc__ or "").split())
        title, number = text.partition(" (")[0], re.search(r"\b(\d{2})\d{2}\.\d{4,5}\b", text)
        if not number:
            raise TypeError(f"{cls.__name__}: its docstring names no arXiv number")
        return Paper(title, 2000 + int(number[1]), number[0])
