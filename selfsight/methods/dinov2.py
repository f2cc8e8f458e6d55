"""DINOv2: DINO on images, iBOT on masked patches, Sinkhorn's targets, and features that spread."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from selfsight.config import Share
from selfsight.losses import (
    centred_softmax,
    koleo,
    sinkhorn,
    swapped_prediction,
    weighted_cross_entropy,
)
from selfsight.methods import vit
from selfsight.methods.dino import DINO, dino_head
from selfsight.methods.ema import EMA, Center
from selfsight.methods.heads import encode
from selfsight.methods.ibot import large_masks
from selfsight.methods.method import Backbone, Batch, Method, Output
from selfsight.schedules import cosine, linear


class DINOv2(Method):
    """Learning Robust Visual Features without Supervision (Oquab et al., TMLR 2024, 2304.07193),
    section 4. The first two views are the large ones.

    differs: each large view is masked with `mask_probability` by its own coordinates, in its code
        exactly that part of a batch; KoLeo's neighbours are of all ranks.

    >>> from selfsight.testing import tiny_vit
    >>> method = DINOv2(tiny_vit(32), DINOv2.Config(output_dim=4096))
    >>> method(*torch.rand(2, 4, 3, 32, 32), seed=0).loss.backward()
    """

    default_views = "dinov2"
    view_count = (2, None)
    needs = ("teacher", "multi-crop", "ViT")
    couples_images = True
    remedy = DINO.remedy

    class Config(DINO.Config):
        name: Literal["dinov2"] = "dinov2"
        momentum: float = Field(default=0.992, ge=0, le=1)  # the teacher's; rises to 1
        temperature_warmup: float = Field(default=0.3, ge=0, le=1)
        centering: Literal["sinkhorn", "softmax"] = "sinkhorn"  # of the teacher's outputs
        separate_heads: bool = True  # for patches one of their own; false: as in iBOT
        patch_weight: float = Field(default=1.0, ge=0)  # of iBOT's loss; DINO's has 1
        koleo_weight: float = Field(default=0.1, ge=0)
        mask_probability: float = Field(default=0.5, ge=0, le=1)  # that a large view is masked
        mask_ratio: Share = (0.1, 0.5)  # fraction of its patches, uniform

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        vit.require_vit(backbone, config.name)
        self.mask_token = nn.Parameter(torch.zeros(backbone.embed_dim))
        self.heads = nn.ModuleList(
            dino_head(backbone.num_features, config) for _ in range(1 + config.separate_heads)
        )  # of images, of patches
        self.teacher = EMA(self.backbone, self.heads)
        if config.centering == "softmax":
            center = (Center(config.output_dim, config.center_momentum) for _ in range(2))
            self.centers = nn.ModuleList(center)  # of images, of patches
        self.register_buffer("teacher_temperature", torch.tensor(config.teacher_temperature))

    def forward(self, batch: Batch) -> Output:
        return self.run(batch)[0]

    def run(self, batch: Batch) -> tuple[Output, Tensor]:
        """The output, and the student's features of the patches of the large views (2B, N, D)."""
        c, prefix = self.config, self.backbone.num_prefix_tokens
        large = torch.cat(batch.views[:2])  # (2B, 3, s, s)
        mask = large_masks(batch, self.backbone, c.mask_probability, c.mask_ratio)  # (2B, N)
        tokens = vit.run(self.backbone, large, masked=mask, mask_token=self.mask_token)
        h = vit.pool(self.backbone, tokens)  # (2B, D)
        student = [*self.heads[0](h).chunk(2)]  # of each view (B, K)
        if len(batch.views) > 2:
            small = encode(self.backbone, batch.views[2:])
            student += self.heads[0](torch.cat(small)).chunk(len(small))
        with torch.no_grad():
            backbone, heads = self.teacher
            full = vit.run(backbone, large)
            targets = self._targets(heads[0](vit.pool(backbone, full)), 0)  # (2B, K)
            patch_targets = self._targets(heads[-1](full[:, prefix:][mask]), 1)  # (M, K)
        loss = swapped_prediction(student, list(targets.chunk(2)), c.temperature)
        weights = mask / (len(mask) * mask.sum(1, keepdim=True).clamp_min(1))  # (2B, N)
        patches = self.heads[-1](tokens[:, prefix:][mask])  # (M, K), of masked patches alone
        patch_loss = weighted_cross_entropy(patches, patch_targets, weights[mask], c.temperature)
        spread = sum(koleo(x) for x in h.chunk(2)) if c.koleo_weight else 0.0
        loss = loss + c.patch_weight * patch_loss + c.koleo_weight * spread
        output = Output(loss, features=h.chunk(2)[0], embeddings=tuple(student[:2]))
        return output, tokens[:, prefix:]

    def _targets(self, scores: Tensor, kind: int) -> Tensor:
        """The teacher's distributions, from its scores of images (kind 0) or patches (1)."""
        if self.config.centering == "sinkhorn":
            return sinkhorn(scores, self.teacher_temperature, 3)
        center = self.centers[kind]
        if self.training:
            center.stage_some(scores)
        return centred_softmax(scores, center.value, self.teacher_temperature)

    def after_backward(self, progress: float) -> None:
        if progress < self.config.freeze_last_layer:
            for head in self.heads:
                head[-1].weight.grad = None

    def after_step(self, progress: float) -> None:
        c = self.config
        momentum = cosine(c.momentum, 1.0, progress)
        self.teacher.ema_update(self.backbone, self.heads, momentum=momentum)
        for center in self.centers if c.centering == "softmax" else ():
            center.commit()
        temperatures = c.teacher_temperature, c.final_teacher_temperature
        self.teacher_temperature.fill_(linear(*temperatures, progress, c.temperature_warmup))
