"""NNCLR: the positive is the nearest neighbour of the other view among earlier images."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsight.losses import batch_info_nce
from selfsight.methods.heads import mlp
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output
from selfsight.methods.queue import Queue


class NNCLR(Method):
    """With a Little Help from My Friends (Dwibedi et al., ICCV 2021, 2104.14548), algorithm 1.

    >>> import timm, torch
    >>> method = NNCLR(timm.create_model("resnet18", num_classes=0))
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    default_views = "simclr"
    needs = ("queue",)
    couples_images = True
    remedy = "lower optimizer.lr, raise method.temperature or batch_size"

    class Config(MethodConfig):
        name: Literal["nnclr"] = "nnclr"
        hidden_dim: int = Field(default=2048, ge=1)  # width of the projector's two hidden layers
        output_dim: int = Field(default=256, ge=1)  # width of z and p
        predictor_dim: int = Field(default=4096, ge=1)  # width of the predictor's hidden layer
        temperature: float = Field(default=0.1, gt=0)  # tau in eq. 3
        queue_size: int = Field(default=98304, ge=1)  # of the support set Q

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        hidden, output = config.hidden_dim, config.output_dim
        self.projector = mlp(backbone.num_features, hidden, hidden, output, last="affine norm")
        self.predictor = mlp(output, config.predictor_dim, output)
        self.queue = Queue(config.queue_size, output)

    def forward(self, batch: Batch) -> Output:
        x1, x2 = batch.views
        h1, h2 = self.backbone(x1), self.backbone(x2)  # (B, D)
        z1, z2 = self.projector(h1), self.projector(h2)  # (B, output_dim)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        t = self.config.temperature
        loss = batch_info_nce(self.nearest(z1), p2, t) + batch_info_nce(self.nearest(z2), p1, t)
        if self.training:
            self.queue.stage(z1)
        return Output(loss / 2, features=h1, embeddings=(z1, z2))

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """(B, output_dim) for each z the row of the queue with the largest cosine (eq. 2)."""
        keys = self.queue.keys
        return keys[(F.normalize(z, dim=1).to(keys) @ keys.T).argmax(1)]

    def after_step(self, progress: float) -> None:
        self.queue.commit()
