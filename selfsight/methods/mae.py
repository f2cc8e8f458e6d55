"""MAE: the encoder processes a quarter of the patches; a decoder predicts the others' pixels."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from selfsight import losses
from selfsight.methods import vit
from selfsight.methods.heads import with_divisor
from selfsight.methods.method import Backbone, Batch, Method, MethodConfig, Output
from selfsight.methods.positions import fix_positions, sincos
from selfsight.views.masks import masked_positions, random_mask


class MAE(Method):
    """Masked Autoencoders Are Scalable Vision Learners (He et al., CVPR 2022, 2111.06377).

    >>> import timm, torch
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=0)
    >>> MAE(vit)(torch.rand(4, 3, 32, 32), seed=0).loss.backward()
    """

    default_views = "mae"
    view_count = (1, 1)
    needs = ("ViT",)
    remedy = "lower optimizer.lr, set method.norm_pix=true"

    class Config(MethodConfig):
        name: Literal["mae"] = "mae"
        mask_ratio: float = Field(default=0.75, gt=0, lt=1)  # patches hidden from the encoder
        norm_pix: bool = True  # targets standardised patch by patch
        decoder_dim: int = Field(
            default=512, ge=4
        )  # width of the decoder; a multiple of 4 and of its heads
        decoder_depth: int = Field(default=8, ge=1)  # blocks
        decoder_heads: int = Field(default=16, ge=1)  # of attention

        @model_validator(mode="after")
        def _heads(self) -> "MAE.Config":
            return with_divisor(self, "decoder_heads", "decoder_dim")

    def __init__(self, backbone: Backbone, config: Config | None = None) -> None:
        config = config or self.Config()
        super().__init__(backbone, config)
        vit.require_vit(backbone, config.name)
        fix_positions(backbone)
        self.decoder = Decoder(
            backbone, config.decoder_dim, config.decoder_depth, config.decoder_heads
        )

    def forward(self, batch: Batch) -> Output:
        (x,) = batch.views
        target = vit.patches(x, self.backbone)  # (B, N, C P P)
        prediction, mask, seen = self.predict(batch)
        loss = losses.mae(prediction, target, mask, self.config.norm_pix)
        return Output(loss, features=vit.pool(self.backbone, seen))

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The pixels of all patches (B, N, C P P), standardised with norm_pix; the mask (B, N),
        true for hidden patches; and the encoder's tokens of the others (B, prefix + kept, D)."""
        (x,) = batch.views
        n = len(self.decoder.positions)
        kept = max(1, int(n * (1 - self.config.mask_ratio)))
        mask = random_mask(batch.keys, n, n - kept)  # (B, N)
        keep = masked_positions(~mask, kept)  # (B, kept)
        seen = vit.run(self.backbone, x, keep=keep)  # (B, prefix + kept, D)
        return self.decoder(seen, keep), mask, seen


class Decoder(nn.Module):
    """The tokens of the kept patches -> the pixels of all patches; see section 3, "MAE decoder".

    Each hidden patch is a mask token with a fixed position.
    Args:
        width, depth, heads: of the transformer blocks.
    """

    def __init__(self, backbone: Backbone, width: int, depth: int, heads: int) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        self.prefix = backbone.num_prefix_tokens
        self.embed = nn.Linear(backbone.embed_dim, width)
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        positions = sincos(*backbone.patch_embed.grid_size, width)
        self.register_buffer("positions", positions, persistent=False)  # (N, width)
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        height, across = backbone.patch_embed.patch_size
        channels = vit.channels(backbone)
        self.pixels = nn.Linear(width, channels * height * across)

    def forward(self, seen: Tensor, keep: Tensor) -> Tensor:
        """Tokens (B, prefix + n, D), indices of their patches (B, n) -> pixels (B, N, C P P)."""
        tokens = self.embed(seen)
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        full = self.mask_token.to(tokens.dtype).expand(len(tokens), len(self.positions), -1)
        full = full.scatter(1, keep[..., None].expand_as(patches), patches) + self.positions
        tokens = self.norm(self.blocks(torch.cat([prefix, full.to(prefix.dtype)], dim=1)))
        return self.pixels(tokens[:, self.prefix :])
