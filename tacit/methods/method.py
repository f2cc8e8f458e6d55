"""The contract between a method and the engine."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from tacit.config import Config
from tacit.data.loader import Batch

__all__ = ["Batch", "Method", "MethodConfig", "Output"]


class MethodConfig(Config):
    """Base of the methods' own configuration classes; each adds `name: Literal[...]`."""


@dataclass(frozen=True)
class Output:
    """What a forward pass gives back.

    Attributes:
        loss: scalar, the mean over this rank's samples.
        features: (B, D) the encoder's features of one view; the online probe reads them, detached.
        metrics: scalars worth logging; tensors stay on the device until they are logged.
    """

    loss: Tensor
    features: Tensor
    metrics: dict[str, Tensor | float] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """A way to pretrain `self.backbone`. Knows no loader, optimizer, rank or device.

    Everything with requires_grad is optimised; what changes with time happens in the two hooks,
    with progress, the fraction of training done, in [0, 1].

    Class attributes:
        default_views: the preset of the paper's views.
        constant_lr: names of members whose learning rate does not follow the schedule.
    """

    default_views: ClassVar[str] = "simclr"
    constant_lr: ClassVar[tuple[str, ...]] = ()

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
