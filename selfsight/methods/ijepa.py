"""I-JEPA: predict the features of blocks of an image from another block of it."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from selfsight.config import Ratio, Share
from selfsight.losses import masked_smooth_l1
from selfsight.methods import vit
from selfsight.methods.ema import EMA
from selfsight.methods.heads import with_divisor
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output
from selfsight.methods.positions import fix_positions, sincos
from selfsight.schedules import linear
from selfsight.views.masks import context_and_targets, masked_positions


class IJEPA(Method):
    """Image-based Joint-Embedding Predictive Architecture (Assran et al., CVPR 2023, 2301.08243).

    differs: block sizes are drawn for each image, not for a batch, so that a mask does not depend
        on the batch. Shorter rows of a batch are padded, and no token attends to the padding.

    >>> from selfsight.testing import tiny_vit
    >>> IJEPA(tiny_vit(32))(torch.rand(4, 3, 32, 32), seed=0).loss.backward()
    """

    default_views = "ijepa"
    view_count = (1, 1)
    needs = ("teacher", "ViT")
    remedy = "raise method.momentum, lower optimizer.lr"

    class Config(MethodConfig):
        name: Literal["ijepa"] = "ijepa"
        predictor_dim: int = Field(default=384, ge=4)  # width of the predictor
        predictor_depth: int = Field(default=6, ge=1)  # blocks (12 for ViT-L and larger)
        predictor_heads: int = Field(default=12, ge=1)  # of attention
        targets: int = Field(default=4, ge=1)  # M blocks
        target_scale: Share = (0.15, 0.2)  # area of a target, fraction of the view
        target_ratio: Ratio = (0.75, 1.5)  # height / width of a target
        context_scale: Share = (0.85, 1.0)  # area of the context
        momentum: float = Field(default=0.996, ge=0, le=1)  # the teacher's; rises linearly to 1

        @model_validator(mode="after")
        def _heads(self) -> "IJEPA.Config":
            return with_divisor(self, "predictor_heads", "predictor_dim")

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        vit.require_vit(backbone, config.name, pooled=True)
        fix_positions(backbone)
        self.predictor = Predictor(backbone, config)
        self.teacher = EMA(backbone)

    def forward(self, batch: Batch) -> Output:
        (x,) = batch.views
        c, prefix = self.config, self.backbone.num_prefix_tokens
        grid = self.backbone.patch_embed.grid_size
        context, targets = context_and_targets(
            batch.keys, grid, c.targets, c.target_scale, c.target_ratio, c.context_scale
        )  # (B, N), (B, M, N)
        targets = targets.flatten(0, 1)  # (B M, N)
        keep, real = ragged(context)  # (B, n)
        wanted, counted = ragged(targets)  # (B M, m)
        seen = vit.run(self.backbone, x, keep=keep, real=real)[:, prefix:]  # (B, n, D)
        predicted = self.predictor(seen, keep, real, wanted, counted)  # (B M, m, D)
        with torch.no_grad():
            full = vit.run(self.teacher[0], x)[:, prefix:]  # (B, N, D)
            full = full.to(torch.promote_types(full.dtype, torch.float32))
            full = F.layer_norm(full, full.shape[-1:]).repeat_interleave(c.targets, 0)
            target = vit.pick(full, wanted)
        loss = masked_smooth_l1(predicted, target, counted)
        features = (seen * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        return Output(loss, features=features)

    def after_step(self, progress: float) -> None:
        self.teacher.ema_update(self.backbone, momentum=linear(self.config.momentum, 1.0, progress))


def ragged(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mask (B, N) -> the indices where it is true (B, n), and a bool (B, n), false for padding."""
    keep = masked_positions(mask, int(mask.sum(1).max()))
    return keep, mask.gather(1, keep)


class Predictor(nn.Module):
    """A narrow transformer: context tokens and one mask token per target patch -> its features."""

    def __init__(self, backbone: Backbone, config: IJEPA.Config) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        width, heads = config.predictor_dim, config.predictor_heads
        self.embed = nn.Linear(backbone.embed_dim, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        positions = sincos(*backbone.patch_embed.grid_size, width)
        self.register_buffer("positions", positions, persistent=False)  # (N, width)
        blocks = (Block(width, heads, qkv_bias=True) for _ in range(config.predictor_depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, backbone.embed_dim)

    def forward(
        self, seen: Tensor, keep: Tensor, real: Tensor, wanted: Tensor, counted: Tensor
    ) -> Tensor:
        """Context (B, n, D) at indices (B, n), target indices (B M, m) -> features (B M, m, D)."""
        context = self.embed(seen) + self.positions[keep]
        repeats = len(wanted) // len(seen)
        context, real = (x.repeat_interleave(repeats, 0) for x in (context, real))
        asked = self.mask_token + self.positions[wanted]
        tokens = torch.cat([context, asked.to(context.dtype)], dim=1)
        attend = vit.attention_mask(torch.cat([real, counted], dim=1)).to(tokens.dtype)
        for block in self.blocks:
            tokens = block(tokens, attn_mask=attend)
        return self.project(self.norm(tokens[:, context.shape[1] :]))
