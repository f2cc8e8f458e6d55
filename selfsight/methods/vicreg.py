"""VICReg: two views are equal, each feature varies, and features are uncorrelated."""

from typing import Literal

from pydantic import Field

from selfsight import losses
from selfsight.methods.heads import mlp
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output


class VICReg(Method):
    """Variance-Invariance-Covariance Regularization (Bardes et al., ICLR 2022, 2105.04906).

    >>> import timm, torch
    >>> small = VICReg.Config(hidden_dim=256, output_dim=256)
    >>> method = VICReg(timm.create_model("resnet18", num_classes=0), small)
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    default_views = "vicreg"
    couples_images = True
    remedy = "raise method.variance or method.covariance, lower optimizer.lr"

    class Config(MethodConfig):
        name: Literal["vicreg"] = "vicreg"
        hidden_dim: int = Field(default=8192, ge=1)  # width of the expander's two hidden layers
        output_dim: int = Field(default=8192, ge=2)  # width of z
        invariance: float = Field(default=25.0, ge=0)  # weights of the three terms (eq. 6)
        variance: float = Field(default=25.0, ge=0)
        covariance: float = Field(default=1.0, ge=0)

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        hidden, output = config.hidden_dim, config.output_dim
        self.projector = mlp(backbone.num_features, hidden, hidden, output, last="no bias")

    def forward(self, batch: Batch) -> Output:
        x1, x2 = batch.views
        h1, h2 = self.backbone(x1), self.backbone(x2)  # (B, D)
        z1, z2 = self.projector(h1), self.projector(h2)  # (B, output_dim)
        c = self.config
        loss = losses.vicreg(z1, z2, c.invariance, c.variance, c.covariance)
        return Output(loss, features=h1, embeddings=(z1, z2))
