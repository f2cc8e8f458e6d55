"""DINO: the student predicts, from all crops, the teacher's distributions of the large crops."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from selfsight.losses import centred_softmax, swapped_prediction
from selfsight.methods.ema import EMA, Center
from selfsight.methods.heads import CosinePrototypes, encode, mlp
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output
from selfsight.schedules import cosine, linear


class DINO(Method):
    """Emerging Properties in Self-Supervised Vision Transformers (Caron et al., ICCV 2021,
    2104.14294), algorithm 1. The first two views are the large ones, which the teacher sees.

    >>> import timm, torch
    >>> encoder = timm.create_model("resnet18", num_classes=0)
    >>> method = DINO(encoder, DINO.Config(output_dim=4096))
    >>> method(*torch.rand(2, 4, 3, 32, 32)).loss.backward()
    """

    default_views = "dino"
    view_count = (2, None)
    needs = ("teacher", "multi-crop")
    remedy = "lower method.final_teacher_temperature or optimizer.lr, raise method.momentum"

    class Config(MethodConfig):
        name: Literal["dino"] = "dino"
        hidden_dim: int = Field(default=2048, ge=1)  # width of the head's two hidden layers
        bottleneck_dim: int = Field(default=256, ge=1)  # width before the last layer
        output_dim: int = Field(default=65536, ge=2)  # K
        head_norm: bool = False  # batch normalisation in the head (for ResNets)
        temperature: float = Field(default=0.1, gt=0)  # the student's
        teacher_temperature: float = Field(default=0.04, gt=0)  # at the start
        final_teacher_temperature: float = Field(default=0.07, gt=0)  # after the warm-up
        temperature_warmup: float = Field(default=0.1, ge=0, le=1)  # linear until 30 of 300 epochs
        center_momentum: float = Field(default=0.9, ge=0, le=1)  # m in eq. 4
        momentum: float = Field(default=0.996, ge=0, le=1)  # the teacher's; rises to 1
        freeze_last_layer: float = Field(default=0.01, ge=0, le=1)  # until then: 1 of 100 epochs

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        self.head = dino_head(backbone.num_features, config)
        self.teacher = EMA(self.backbone, self.head)
        self.center = Center(config.output_dim, config.center_momentum)
        self.register_buffer("teacher_temperature", torch.tensor(config.teacher_temperature))

    def forward(self, batch: Batch) -> Output:
        h = encode(self.backbone, batch.views)  # of each view (B, D)
        student = self.head(torch.cat(h)).chunk(len(h))  # of each view (B, K)
        teacher = torch.cat(encode(self.teacher, batch.views[:2]))  # (2B, K)
        targets = centred_softmax(teacher, self.center.value, self.teacher_temperature)
        loss = swapped_prediction(list(student), list(targets.chunk(2)), self.config.temperature)
        if self.training:
            self.center.stage(teacher)
        return Output(loss, features=h[0], embeddings=tuple(student[:2]))

    def after_backward(self, progress: float) -> None:
        if progress < self.config.freeze_last_layer:
            self.head[-1].weight.grad = None

    def after_step(self, progress: float) -> None:
        c = self.config
        self.teacher.ema_update(
            self.backbone, self.head, momentum=cosine(c.momentum, 1.0, progress)
        )
        self.center.commit()
        self.teacher_temperature.fill_(  # for the next step
            linear(
                c.teacher_temperature, c.final_teacher_temperature, progress, c.temperature_warmup
            )
        )


def dino_head(width: int, config: MethodConfig) -> nn.Sequential:
    """Three linear layers, then the cosines with K prototypes (appendix C)."""
    hidden = [config.hidden_dim] * 2
    layers = mlp(width, *hidden, config.bottleneck_dim, norm=config.head_norm, activation=nn.GELU)
    for module in layers:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return layers.append(CosinePrototypes(config.bottleneck_dim, config.output_dim))
