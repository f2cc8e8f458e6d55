"""The native configuration of a United Perception file while its sections are read."""

from dataclasses import dataclass
from typing import TypeAlias

from selfsight.interop.report import Converted
from selfsight.interop.section import Section


@dataclass
class Draft(Converted):
    """The configuration, and what one section of the file needs to know of another."""

    wrapper: str | None = None  # UP's name of the pretraining method, not checked yet
    ranks: int = 1  # processes that share a batch; UP's batch size is that of one process
    adaptive: bool = False  # the optimizer's steps do not depend on the scale of the loss
    epochs: float | None = None  # length of training, if the file gives it
    lr: float | None = None  # peak learning rate, or the rate for one image
    per_image: bool = False  # `lr` is the rate for one image

    @property
    def batch(self) -> int:
        """Images in a step."""
        return self.tree.get("batch_size") or 256

    @property
    def on_cpu(self) -> bool:
        """Whether batch norm cannot share statistics between processes."""
        return self.tree.get("device") == "cpu"


Keys: TypeAlias = Section[Draft]
