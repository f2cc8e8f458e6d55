"""MoCo v3: MoCo with a predictor; the negatives are the keys of the batch, without a queue."""

from typing import Literal

from pydantic import Field

from selfsight.losses import batch_info_nce
from selfsight.methods import vit
from selfsight.methods.ema import EMA
from selfsight.methods.heads import mlp
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output
from selfsight.methods.positions import fix_positions
from selfsight.schedules import cosine


class MoCoV3(Method):
    """An Empirical Study of Training Self-Supervised Vision Transformers (Chen et al., ICCV 2021,
    2104.02057), algorithm 1. ViTs get fixed sine-cosine positions and a frozen patch embedding.

    >>> import timm, torch
    >>> method = MoCoV3(timm.create_model("resnet18", num_classes=0))
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    default_views = "byol"
    needs = ("teacher",)
    couples_images = True
    remedy = "lower optimizer.lr, raise method.temperature"

    class Config(MethodConfig):
        name: Literal["moco_v3"] = "moco_v3"
        hidden_dim: int = Field(default=4096, ge=1)  # hidden width of projector and predictor
        output_dim: int = Field(default=256, ge=1)  # width of q and k
        temperature: float = Field(default=0.2, gt=0)  # tau in eq. 1 (ResNet-50: 1.0)
        momentum: float = Field(default=0.99, ge=0, le=1)  # m; rises to 1 by half a cosine
        freeze_patch_embed: bool = True  # for ViTs; section 4.2: makes training stable

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        transformer = hasattr(backbone, "patch_embed")
        if transformer:
            vit.require_vit(backbone, config.name)
            fix_positions(backbone)
            backbone.patch_embed.requires_grad_(not config.freeze_patch_embed)
        hidden, output = [config.hidden_dim] * (2 if transformer else 1), config.output_dim
        self.projector = mlp(backbone.num_features, *hidden, output, last="norm")
        last = "norm" if transformer else "no bias"
        self.predictor = mlp(output, config.hidden_dim, output, last=last)
        self.teacher = EMA(self.backbone, self.projector)

    def forward(self, batch: Batch) -> Output:
        x1, x2 = batch.views
        h1, h2 = self.backbone(x1), self.backbone(x2)  # (B, D)
        q1, q2 = (self.predictor(self.projector(h)) for h in (h1, h2))  # (B, output_dim)
        k1, k2 = self.teacher(x1), self.teacher(x2)
        t = self.config.temperature
        loss = 2 * t * (batch_info_nce(q1, k2, t) + batch_info_nce(q2, k1, t))
        return Output(loss, features=h1, embeddings=(q1, k2))

    def after_step(self, progress: float) -> None:
        momentum = cosine(self.config.momentum, 1.0, progress)
        self.teacher.ema_update(self.backbone, self.projector, momentum=momentum)
