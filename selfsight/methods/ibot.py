"""iBOT: DINO, and for each masked patch the student predicts the teacher's distribution."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from selfsight.config import Share
from selfsight.losses import centred_softmax, masked_cross_entropy, swapped_prediction
from selfsight.methods import vit
from selfsight.methods.dino import DINO, dino_head
from selfsight.methods.ema import EMA, Center
from selfsight.methods.heads import encode
from selfsight.methods.method import Backbone, Batch, Method, Output
from selfsight.schedules import cosine, linear
from selfsight.views.masks import block_mask


class IBOT(Method):
    """Image BERT Pre-Training with Online Tokenizer (Zhou et al., ICLR 2022, 2111.07832).

    Algorithm 1, with one head for image and patches. The first two views are the large ones.

    >>> import timm, torch
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0)
    >>> IBOT(vit)(*torch.rand(2, 4, 3, 32, 32), seed=0).loss.backward()
    """

    default_views = "ibot"
    view_count = (2, None)
    needs = ("teacher", "multi-crop", "ViT")
    remedy = DINO.remedy

    class Config(DINO.Config):
        name: Literal["ibot"] = "ibot"
        output_dim: int = Field(default=8192, ge=2)  # K
        mask_probability: float = Field(default=0.5, ge=0, le=1)  # that a large view is masked
        mask_ratio: Share = (0.1, 0.5)  # fraction of its patches, uniform
        patch_weight: float = Field(default=1.0, ge=0)  # of the patches' loss; the images' has 1

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        vit.require_vit(backbone, config.name)
        self.mask_token = nn.Parameter(torch.zeros(backbone.embed_dim))
        self.head = dino_head(backbone.num_features, config)
        self.teacher = EMA(self.backbone, self.head)
        self.center = Center(config.output_dim, config.center_momentum)
        self.patch_center = Center(config.output_dim, config.center_momentum)
        self.register_buffer("teacher_temperature", torch.tensor(config.teacher_temperature))

    def forward(self, batch: Batch) -> Output:
        c, prefix = self.config, self.backbone.num_prefix_tokens
        large = torch.cat(batch.views[:2])  # (2B, 3, s, s)
        mask = large_masks(batch, self.backbone, c.mask_probability, c.mask_ratio)  # (2B, N)
        tokens = vit.run(self.backbone, large, masked=mask, mask_token=self.mask_token)
        h = vit.pool(self.backbone, tokens)  # (2B, D)
        student = [*self.head(h).chunk(2)]  # of each view (B, K)
        if len(batch.views) > 2:
            small = encode(self.backbone, batch.views[2:])
            student += self.head(torch.cat(small)).chunk(len(small))
        with torch.no_grad():
            backbone, head = self.teacher
            full = vit.run(backbone, large)
            teacher, teacher_patches = head(vit.pool(backbone, full)), head(full[:, prefix:])
            t = self.teacher_temperature
            targets = centred_softmax(teacher, self.center.value, t)
            patch_targets = centred_softmax(teacher_patches, self.patch_center.value, t)
        patches = self.head(tokens[:, prefix:])  # (2B, N, K)
        loss = swapped_prediction(student, list(targets.chunk(2)), c.temperature)
        patch_loss = masked_cross_entropy(patches, patch_targets, mask, c.temperature)
        if self.training:
            self.center.stage(teacher)
            self.patch_center.stage(teacher_patches)
        loss = loss + c.patch_weight * patch_loss
        return Output(loss, features=h.chunk(2)[0], embeddings=tuple(student[:2]))

    def after_backward(self, progress: float) -> None:
        if progress < self.config.freeze_last_layer:
            self.head[-1].weight.grad = None

    def after_step(self, progress: float) -> None:
        c = self.config
        momentum = cosine(c.momentum, 1.0, progress)
        self.teacher.ema_update(self.backbone, self.head, momentum=momentum)
        self.center.commit()
        self.patch_center.commit()
        temperatures = c.teacher_temperature, c.final_teacher_temperature
        self.teacher_temperature.fill_(linear(*temperatures, progress, c.temperature_warmup))


def large_masks(
    batch: Batch, backbone: Backbone, probability: float, ratio: tuple[float, float]
) -> Tensor:
    """(2B, N) bool: of both large views, blocks in a random part of the images, no patch in the
    others."""
    rows, columns = backbone.patch_embed.grid_size
    masks, (low, high) = [], ratio
    for view in range(2):
        u = batch.keys.mask_draws(2 + view, 2)  # views 0 and 1 are used by the blocks themselves
        part = torch.where(u[:, 0] < probability, low + (high - low) * u[:, 1], 0)
        count = (part * rows * columns).long()
        masks.append(block_mask(batch.keys, (rows, columns), count, view))
    return torch.cat(masks)
