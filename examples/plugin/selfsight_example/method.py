"""Align and Uniform: views of an image are pulled together, and all images spread on the sphere."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsight import Batch, Method, MethodConfig, Output, distributed
from selfsight.losses import full_precision
from selfsight.methods import Backbone
from selfsight.methods.heads import mlp


class AlignUniform(Method):
    """Alignment and Uniformity on the Hypersphere (Wang and Isola, ICML 2020, 2005.10242)."""

    default_views = "moco_v2"
    couples_images = True
    remedy = "raise method.uniformity"

    class Config(MethodConfig):
        hidden_dim: int = Field(2048, ge=1)  # width of the projector's hidden layer
        output_dim: int = Field(128, ge=1)  # width of z
        uniformity: float = Field(1.0, ge=0)  # weight of the second term

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        self.projector = mlp(backbone.num_features, config.hidden_dim, config.output_dim)

    def forward(self, batch: Batch) -> Output:
        x1, x2 = batch.views
        h1, h2 = self.backbone(x1), self.backbone(x2)  # (B, D)
        z1, z2 = self.projector(h1), self.projector(h2)  # (B, output_dim)
        loss = align_uniform(z1, z2, self.config.uniformity)
        return Output(loss, features=h1, embeddings=(z1, z2))


@full_precision
def align_uniform(z1: Tensor, z2: Tensor, weight: float) -> Tensor:
    """mean |z1 - z2|^2 + weight * mean over views of log mean over pairs of exp(-2 |z_i - z_j|^2).

    Args:
        z1, z2: (B, D) projections, normalised here.
    """
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    loss = (z1 - z2).square().sum(1).mean()
    for z in (z1, z2):
        everyone = distributed.gather(z)  # (WB, D)
        loss = loss + weight / 2 * torch.pdist(everyone).square().mul(-2).exp().mean().log()
    return loss
