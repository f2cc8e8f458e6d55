"""SimMIM: masked patches are replaced by a token; one linear layer predicts their pixels."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from selfsight import losses
from selfsight.errors import UserError
from selfsight.methods import vit
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output
from selfsight.views.masks import random_mask


class SimMIM(Method):
    """A Simple Framework for Masked Image Modeling (Xie et al., CVPR 2022, 2111.09886).

    >>> from selfsight.testing import tiny_vit
    >>> SimMIM(tiny_vit(32), SimMIM.Config(mask_size=8))(torch.rand(4, 3, 32, 32)).loss.backward()
    """

    default_views = "simmim"
    view_count = (1, 1)
    needs = ("ViT",)
    remedy = "lower optimizer.lr"

    class Config(MethodConfig):
        name: Literal["simmim"] = "simmim"
        mask_ratio: float = Field(default=0.6, gt=0, lt=1)  # fraction of units that are masked
        mask_size: int = Field(default=32, ge=1)  # side of a unit in pixels, patches' multiple

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        vit.require_vit(backbone, config.name, pooled=True)
        self.grid = backbone.patch_embed.grid_size
        height, width = backbone.patch_embed.patch_size
        self.unit = config.mask_size // height  # in patches
        if config.mask_size % height or any(side % max(1, self.unit) for side in self.grid):
            raise UserError(
                f"method.mask_size={config.mask_size}: no multiple of the patch size {height} "
                f"that divides the view; set method.mask_size={height}"
            )
        self.mask_token = nn.Parameter(torch.randn(backbone.embed_dim) * 0.02)
        channels = vit.channels(backbone)
        self.decoder = nn.Linear(backbone.embed_dim, channels * height * width)

    def forward(self, batch: Batch) -> Output:
        (x,) = batch.views
        prediction, mask, tokens = self.predict(batch)
        loss = losses.simmim(prediction, vit.patches(x, self.backbone), mask)
        return Output(loss, features=vit.pool(self.backbone, tokens))

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The pixels of all patches (B, N, C P P); the mask (B, N), true for hidden patches; and
        the encoder's tokens (B, prefix + N, D)."""
        (x,) = batch.views
        mask = self.mask(batch)  # (B, N)
        token = self.mask_token
        tokens = vit.run(self.backbone, x, masked=mask, mask_token=token)  # (B, prefix + N, D)
        return self.decoder(tokens[:, self.backbone.num_prefix_tokens :]), mask, tokens

    def mask(self, batch: Batch) -> Tensor:
        """(B, N) bool: whole units of patches, the same number in each image."""
        rows, columns = (side // self.unit for side in self.grid)
        units = rows * columns
        masked = min(units - 1, -int(-units * self.config.mask_ratio // 1))  # rounded up
        mask = random_mask(batch.keys, units, masked).view(-1, rows, columns)
        return mask.repeat_interleave(self.unit, 1).repeat_interleave(self.unit, 2).flatten(1)
