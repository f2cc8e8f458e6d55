"""DINOv3's Gram anchoring: DINOv2, and patches stay as similar to each other as a teacher's are."""

import copy
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field

from selfsight.losses import gram_distance
from selfsight.methods.dinov2 import DINOv2
from selfsight.methods.frozen import FrozenTeacher
from selfsight.methods.method import Backbone, Batch, Output


class DINOv3(DINOv2):
    """DINOv3 (Simeoni et al., 2025, 2508.10104), section 4: Gram anchoring of the large views'
    patches to a frozen Gram teacher: the encoder that training starts from, or `teacher.weights`.

    differs: all else is DINOv2's. The paper's Gram teacher is an earlier state of the run.

    >>> from selfsight.testing import tiny_vit
    >>> method = DINOv3(tiny_vit(32), DINOv3.Config(output_dim=4096))
    >>> method(*torch.rand(2, 4, 3, 32, 32), seed=0).loss.backward()
    """

    frozen_teacher = "optional"

    class Config(DINOv2.Config):
        name: Literal["dinov3"] = "dinov3"
        gram_weight: float = Field(default=2.0, ge=0)

    def __init__(
        self,
        backbone: Backbone,
        config: Config | None = None,
        teacher: FrozenTeacher | None = None,
    ) -> None:
        super().__init__(backbone, config or self.Config())
        self.gram_teacher = teacher or FrozenTeacher(copy.deepcopy(backbone))

    def forward(self, batch: Batch) -> Output:
        output, patches = self.run(batch)  # (2B, N, D)
        grid = self.backbone.patch_embed.grid_size
        wanted = self.gram_teacher(torch.cat(batch.views[:2])).at(grid)  # (2B, N, E)
        gram = gram_distance(patches, wanted)
        return replace(output, loss=output.loss + self.config.gram_weight * gram)
