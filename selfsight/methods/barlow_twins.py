"""Barlow Twins: each feature of one view correlates with the same feature of the other only."""

from typing import Literal

from pydantic import Field

from selfsight import losses
from selfsight.methods.heads import mlp
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output


class BarlowTwins(Method):
    """Self-Supervised Learning via Redundancy Reduction (Zbontar et al., ICML 2021, 2103.03230).

    >>> import timm, torch
    >>> small = BarlowTwins.Config(hidden_dim=256, output_dim=256)
    >>> method = BarlowTwins(timm.create_model("resnet18", num_classes=0), small)
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    default_views = "byol"
    couples_images = True
    remedy = "lower optimizer.lr, raise batch_size or method.off_diagonal_weight"

    class Config(MethodConfig):
        name: Literal["barlow_twins"] = "barlow_twins"
        hidden_dim: int = Field(default=8192, ge=1)  # width of the projector's two hidden layers
        output_dim: int = Field(default=8192, ge=2)  # width of z
        off_diagonal_weight: float = Field(default=0.005, ge=0)  # lambda in eq. 1
        loss_scale: float = Field(
            default=1.0, gt=0
        )  # factor on the loss (the paper's code: 0.024 or 1)

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        hidden, output = config.hidden_dim, config.output_dim
        self.projector = mlp(backbone.num_features, hidden, hidden, output, last="no bias")

    def forward(self, batch: Batch) -> Output:
        x1, x2 = batch.views
        h1, h2 = self.backbone(x1), self.backbone(x2)  # (B, D)
        z1, z2 = self.projector(h1), self.projector(h2)  # (B, output_dim)
        loss = losses.barlow_twins(z1, z2, self.config.off_diagonal_weight)
        return Output(self.config.loss_scale * loss, features=h1, embeddings=(z1, z2))
