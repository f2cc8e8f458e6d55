"""MoCo v1 and v2: a query is compared with its own key, from a teacher, and a queue of others."""

from typing import Literal

from pydantic import Field

from selfsight.losses import info_nce
from selfsight.methods.ema import EMA
from selfsight.methods.heads import mlp
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output
from selfsight.methods.queue import Queue


class MoCoV2(Method):
    """Improved Baselines with Momentum Contrastive Learning (Chen et al., arXiv 2003.04297).

    The algorithm is Algorithm 1 of MoCo (He et al., CVPR 2020, arXiv 1911.05722).
    differs: keys are not shuffled between GPUs before batch normalisation. With one process
        shuffling has no effect; with several use sync_batchnorm, as MoCo v3 does.

    >>> import timm, torch
    >>> method = MoCoV2(timm.create_model("resnet18", num_classes=0))
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    default_views = "moco_v2"
    needs = ("teacher", "queue")
    remedy = "lower optimizer.lr, raise method.momentum"

    class Config(MethodConfig):
        name: Literal["moco_v2"] = "moco_v2"
        hidden_dim: int = Field(default=2048, ge=0)  # of the projector's hidden layer; 0: none
        output_dim: int = Field(default=128, ge=1)  # width of q and k
        temperature: float = Field(default=0.2, gt=0)  # tau in eq. 1
        momentum: float = Field(default=0.999, ge=0, le=1)  # m in eq. 2
        queue_size: int = Field(default=65536, ge=1)  # K keys

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        hidden = [config.hidden_dim] if config.hidden_dim else []
        self.projector = mlp(backbone.num_features, *hidden, config.output_dim, norm=False)
        self.teacher = EMA(self.backbone, self.projector)
        self.queue = Queue(config.queue_size, config.output_dim)

    def forward(self, batch: Batch) -> Output:
        x_q, x_k = batch.views
        h = self.backbone(x_q)  # (B, D)
        q, k = self.projector(h), self.teacher(x_k)  # (B, output_dim)
        loss = info_nce(q, k, self.queue.keys, self.config.temperature)
        if self.training:
            self.queue.stage(k)
        return Output(loss, features=h, embeddings=(q, k))

    def after_step(self, progress: float) -> None:
        self.teacher.ema_update(self.backbone, self.projector, momentum=self.config.momentum)
        self.queue.commit()


class MoCoV1(MoCoV2):
    """Momentum Contrast for Unsupervised Visual Representation Learning (He et al., CVPR 2020,
    1911.05722): a linear projector, views without blur, a lower temperature.

    >>> import timm, torch
    >>> method = MoCoV1(timm.create_model("resnet18", num_classes=0))
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    default_views = "moco_v1"

    class Config(MoCoV2.Config):
        name: Literal["moco_v1"] = "moco_v1"
        hidden_dim: int = Field(default=0, ge=0)
        temperature: float = Field(default=0.07, gt=0)
