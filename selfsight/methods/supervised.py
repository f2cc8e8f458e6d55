"""Supervised: a classifier trained with all labels, as a baseline."""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from selfsight.methods.heads import encode
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output


class Supervised(Method):
    """Deep Residual Learning for Image Recognition (He et al., CVPR 2016, 1512.03385).

    Cross-entropy of a linear classifier on the encoder's features, the mean over views.

    >>> import timm, torch
    >>> method = Supervised(timm.create_model("resnet18", num_classes=0))
    >>> method(torch.rand(4, 3, 32, 32), labels=torch.tensor([0, 0, 1, 1])).loss.backward()
    """

    default_views = "supervised"
    view_count = (1, None)
    needs = ("labels",)

    class Config(MethodConfig):
        name: Literal["supervised"] = "supervised"
        classes: int = Field(default=1000, ge=2)  # number of classes of the data
        label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        self.classifier = nn.Linear(backbone.num_features, config.classes)

    def forward(self, batch: Batch) -> Output:
        h = encode(self.backbone, batch.views)  # of each view (B, D)
        smoothing = self.config.label_smoothing
        losses = [
            F.cross_entropy(self.classifier(x).float(), batch.labels, label_smoothing=smoothing)
            for x in h
        ]
        return Output(sum(losses) / len(losses), features=h[0], embeddings=tuple(h[:2]))
