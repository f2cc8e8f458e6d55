"""SimSiam: predict the projection of the other view, whose gradient is stopped."""

from typing import Literal

from pydantic import Field

from selfsight.losses import negative_cosine
from selfsight.methods.heads import mlp
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output


class SimSiam(Method):
    """Exploring Simple Siamese Representation Learning (Chen and He, CVPR 2021, 2011.10566).

    >>> import timm, torch
    >>> method = SimSiam(timm.create_model("resnet18", num_classes=0))
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    default_views = "moco_v2"
    constant_lr = ("predictor",)  # section 4.2: it has to follow the latest features
    remedy = "lower optimizer.lr or weight_decay; method.predictor_dim a quarter of output_dim"

    class Config(MethodConfig):
        name: Literal["simsiam"] = "simsiam"
        hidden_dim: int = Field(default=2048, ge=1)  # width of the projector's two hidden layers
        output_dim: int = Field(default=2048, ge=1)  # width of z and p
        predictor_dim: int = Field(default=512, ge=1)  # the predictor's hidden layer: a bottleneck

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        hidden, output = config.hidden_dim, config.output_dim
        self.projector = mlp(backbone.num_features, hidden, hidden, output, last="norm")
        self.predictor = mlp(output, config.predictor_dim, output)

    def forward(self, batch: Batch) -> Output:
        x1, x2 = batch.views
        h1, h2 = self.backbone(x1), self.backbone(x2)  # (B, D)
        z1, z2 = self.projector(h1), self.projector(h2)  # (B, output_dim)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = (negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2  # eq. 4
        return Output(loss, features=h1, embeddings=(z1, z2))
