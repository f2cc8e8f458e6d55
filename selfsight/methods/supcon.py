"""SupCon: SimCLR with labels; all images of a class are positives."""

from typing import Literal

from pydantic import Field

from selfsight.losses import sup_con
from selfsight.methods.heads import mlp
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output


class SupCon(Method):
    """Supervised Contrastive Learning (Khosla et al., NeurIPS 2020, 2004.11362), eq. 2.

    >>> import timm, torch
    >>> method = SupCon(timm.create_model("resnet18", num_classes=0))
    >>> method(*torch.rand(2, 4, 3, 32, 32), labels=torch.tensor([0, 0, 1, 1])).loss.backward()
    """

    default_views = "simclr"
    needs = ("labels",)
    couples_images = True
    remedy = "lower optimizer.lr, raise method.temperature"

    class Config(MethodConfig):
        name: Literal["supcon"] = "supcon"
        hidden_dim: int = Field(default=2048, ge=1)  # width of the projector's hidden layer
        output_dim: int = Field(default=128, ge=1)  # width of z
        temperature: float = Field(default=0.1, gt=0)  # tau in eq. 2

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        self.projector = mlp(backbone.num_features, config.hidden_dim, config.output_dim)

    def forward(self, batch: Batch) -> Output:
        x1, x2 = batch.views
        h1, h2 = self.backbone(x1), self.backbone(x2)  # (B, D)
        z1, z2 = self.projector(h1), self.projector(h2)  # (B, output_dim)
        loss = sup_con(z1, z2, batch.labels, self.config.temperature)
        return Output(loss, features=h1, embeddings=(z1, z2))
