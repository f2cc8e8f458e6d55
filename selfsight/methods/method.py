"""The contract between a method and the engine."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from selfsight.batch import Batch, batch_of
from selfsight.config import Config
from selfsight.methods.paper import Paper, paper_in

__all__ = ["Backbone", "Batch", "Method", "MethodConfig", "Output", "Paper"]
# A module (B, 3, s, s) -> (B, D) with the attribute num_features, D; no type names a ViT's blocks.
Backbone = Any


class MethodConfig(Config):
    """Base class of the methods' configurations; each of the package adds `name: Literal[...]`.

    >>> class Config(MethodConfig):
    ...     temperature: float = 0.2
    """


@dataclass(frozen=True)
class Output:
    """The result of a forward pass.

    Attributes:
        loss: scalar, the mean over this rank's samples.
        features: (B, D) the encoder's features of one view; the online probe uses them, detached.
        embeddings: (B, E) for one or two views, the vectors that the loss compares; or empty. The
            collapse monitor uses them, detached.

    >>> output = Output(loss=torch.zeros(()), features=torch.zeros(8, 512))
    """

    loss: Tensor
    features: Tensor
    embeddings: tuple[Tensor, ...] = ()


class Method(nn.Module, ABC):
    """A way to pretrain `self.backbone`, independent of loader, optimizer, rank and device.

    All parameters with requires_grad are optimised. `progress` in the two hooks is the fraction of
    training done, in [0, 1]. A method also works in a loop of your own: call it with a `Batch`, or
    with the tensors of the views.

    >>> import timm; from selfsight.methods import BYOL
    >>> byol = BYOL(timm.create_model("resnet18", num_classes=0))
    >>> byol(*torch.rand(2, 8, 3, 32, 32)).loss.backward()
    >>> byol.after_step(progress=0.1)

    Args:
        backbone: (B, 3, s, s) -> (B, D), with D as its attribute `num_features`.
        config: an instance of `Config` (default: its defaults).

    Class attributes:
        default_views: the preset with the views of the paper.
        view_count: the smallest and the largest number of views (None: no limit).
        needs: which of "teacher", "queue", "multi-crop", "ViT" and "labels" the method requires.
        frozen_teacher: whether `__init__` takes one as `teacher`; "required": a `sample`, too.
        looks_at: the number of images that `look` gets.
        constant_lr: names of members whose learning rate does not follow the schedule.
        couples_images: the loss of an image depends on the other images of its batch.
        remedy: what to change if all embeddings become equal; None: the monitor does not check.
        Config: the hyperparameters, with the paper's values as defaults.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    backbone: Backbone
    config: Any
    default_views: ClassVar[str] = "simclr"
    view_count: ClassVar[tuple[int, int | None]] = (2, 2)
    needs: ClassVar[tuple[str, ...]] = ()
    constant_lr: ClassVar[tuple[str, ...]] = ()
    frozen_teacher: ClassVar[Literal["no", "optional", "required"]] = "no"
    looks_at: int = 0
    couples_images: ClassVar[bool] = False
    remedy: ClassVar[str | None] = "lower optimizer.lr"

    def __init__(self, backbone: Backbone, config: MethodConfig | None = None) -> None:
        super().__init__()
        self.backbone, self.config = backbone, self.Config() if config is None else config

    def __call__(self, *inputs: Any, **more: Any) -> Output:
        """`forward` of a `Batch`, or of the views as tensors, with keywords as in `batch_of`."""
        if not inputs or not isinstance(inputs[0], Tensor):
            return super().__call__(*inputs, **more)
        least, most = self.view_count
        if len(inputs) < least or (most is not None and len(inputs) > most):
            wanted = f"{least}" if least == most else f"{least} or more"
            raise TypeError(f"{type(self).__name__} takes {wanted} views, found {len(inputs)}")
        return super().__call__(batch_of(*inputs, **more))

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """The loss of one batch. Must not change state that the next forward reads."""

    def look(self, batches: Iterable[Batch]) -> None:
        """Called once, before the first step, with the first batches."""

    def after_backward(self, progress: float) -> None:
        """Called between backward and the optimizer's step, for example to drop a gradient."""

    def after_step(self, progress: float) -> None:
        """Called after the optimizer's step: update teachers, add the step's keys to queues."""

    def rate(self, name: str) -> float:
        """The factor on the learning rate of the parameter with this name."""
        return 1.0

    @classmethod
    def paper(cls) -> Paper | None:
        """The paper that the docstring begins with; None if it names none."""
        return paper_in(cls.__doc__ or "")
