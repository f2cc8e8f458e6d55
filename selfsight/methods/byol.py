"""BYOL: the student predicts the teacher's projection of the other view; no negatives."""

from typing import Literal

from pydantic import Field

from selfsight.losses import negative_cosine
from selfsight.methods.ema import EMA
from selfsight.methods.heads import mlp
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output
from selfsight.schedules import cosine


class BYOL(Method):
    """Bootstrap Your Own Latent (Grill et al., NeurIPS 2020, 2006.07733), eq. 2, symmetrised.

    >>> import timm, torch
    >>> method = BYOL(timm.create_model("resnet18", num_classes=0))
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    default_views = "byol"
    needs = ("teacher",)
    remedy = "lower optimizer.lr, raise method.momentum or batch_size"

    class Config(MethodConfig):
        name: Literal["byol"] = "byol"
        hidden_dim: int = Field(default=4096, ge=1)  # hidden width of projector and predictor
        output_dim: int = Field(default=256, ge=1)  # width of z and p
        momentum: float = Field(default=0.996, ge=0, le=1)  # tau_base; rises to 1 by half a cosine

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        hidden, output = config.hidden_dim, config.output_dim
        self.projector = mlp(backbone.num_features, hidden, output)
        self.predictor = mlp(output, hidden, output)
        self.teacher = EMA(self.backbone, self.projector)

    def forward(self, batch: Batch) -> Output:
        x1, x2 = batch.views
        h1, h2 = self.backbone(x1), self.backbone(x2)  # (B, D)
        p1, p2 = (self.predictor(self.projector(h)) for h in (h1, h2))  # (B, output_dim)
        z1, z2 = self.teacher(x1), self.teacher(x2)
        # 2 - 2 cos, summed over both directions (eq. 2 and its symmetric counterpart)
        loss = 4 + 2 * negative_cosine(p1, z2) + 2 * negative_cosine(p2, z1)
        return Output(loss, features=h1, embeddings=(p1, z2))

    def after_step(self, progress: float) -> None:
        momentum = cosine(self.config.momentum, 1.0, progress)
        self.teacher.ema_update(self.backbone, self.projector, momentum=momentum)
