"""SimCLR: two views of an image attract, all other images of the batch repel."""

from typing import Literal

from pydantic import Field

from selfsight.losses import nt_xent
from selfsight.methods.heads import EncoderWithProjection, mlp
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output


class SimCLR(Method):
    """A Simple Framework for Contrastive Learning (Chen et al., ICML 2020, 2002.05709), eq. 1.

    >>> import timm, torch
    >>> method = SimCLR(timm.create_model("resnet18", num_classes=0))
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    default_views = "simclr"
    couples_images = True
    remedy = "lower optimizer.lr, raise batch_size or method.temperature"

    class Config(MethodConfig):
        name: Literal["simclr"] = "simclr"
        hidden_dim: int = Field(default=2048, ge=1)  # width of the projector's hidden layers
        output_dim: int = Field(default=128, ge=1)  # width of z
        temperature: float = Field(default=0.1, gt=0)  # T in eq. 1

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        self.projector = mlp(backbone.num_features, config.hidden_dim, config.output_dim)

    def forward(self, batch: Batch) -> Output:
        x1, x2 = batch.views
        h1, h2 = self.backbone(x1), self.backbone(x2)  # (B, D)
        z1, z2 = self.projector(h1), self.projector(h2)  # (B, output_dim)
        loss = nt_xent(z1, z2, self.config.temperature)
        return Output(loss, features=h1, embeddings=(z1, z2))


class SimCLRV2(SimCLR):
    """Big Self-Supervised Models are Strong Semi-Supervised Learners (Chen et al., NeurIPS 2020,
    2006.10029): SimCLR with a projector of three layers, the first of which stays in the encoder.

    >>> import timm, torch
    >>> method = SimCLRV2(timm.create_model("resnet18", num_classes=0))
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    class Config(SimCLR.Config):
        name: Literal["simclr_v2"] = "simclr_v2"

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(EncoderWithProjection(backbone, config.hidden_dim), config)
