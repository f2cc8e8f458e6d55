"""DCL and DCLW: SimCLR without the positive in the denominator, which helps small batches."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from selfsight import losses
from selfsight.methods.heads import mlp
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output


class DCL(Method):
    """Decoupled Contrastive Learning (Yeh et al., ECCV 2022, 2110.06848), eq. 6.

    >>> import timm, torch
    >>> method = DCL(timm.create_model("resnet18", num_classes=0))
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    default_views = "simclr"
    couples_images = True
    remedy = "lower optimizer.lr, raise method.temperature"

    class Config(MethodConfig):
        name: Literal["dcl"] = "dcl"
        hidden_dim: int = Field(default=2048, ge=1)  # width of the projector's hidden layer
        output_dim: int = Field(default=128, ge=1)  # width of z
        temperature: float = Field(default=0.1, gt=0)  # tau

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        self.projector = mlp(backbone.num_features, config.hidden_dim, config.output_dim)

    def forward(self, batch: Batch) -> Output:
        x1, x2 = batch.views
        h1, h2 = self.backbone(x1), self.backbone(x2)  # (B, D)
        z1, z2 = self.projector(h1), self.projector(h2)  # (B, output_dim)
        return Output(self.loss(z1, z2), features=h1, embeddings=(z1, z2))

    def loss(self, z1: Tensor, z2: Tensor) -> Tensor:
        return losses.dcl(z1, z2, self.config.temperature)


class DCLW(DCL):
    """Decoupled Contrastive Learning, weighted (Yeh et al., ECCV 2022, 2110.06848), eq. 7: positive
    pairs that are far apart count more.

    >>> import timm, torch
    >>> method = DCLW(timm.create_model("resnet18", num_classes=0))
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    class Config(DCL.Config):
        name: Literal["dclw"] = "dclw"
        sigma: float = Field(default=0.5, gt=0)  # of the von Mises-Fisher weights

    def loss(self, z1: Tensor, z2: Tensor) -> Tensor:
        return losses.dcl(z1, z2, self.config.temperature, self.config.sigma)
