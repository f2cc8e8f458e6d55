"""timm's Vision Transformers with patches left out or replaced by a mask token."""

import torch
from torch import Tensor, nn

from selfsight.errors import UserError
from selfsight.methods.method import Backbone


def require_plain_vit(backbone: Backbone, method: str, pooled: bool = False) -> None:
    """Raises: UserError if the encoder is not a plain Vision Transformer with added positions.

    Args:
        pooled: also refuse an encoder whose features are the class token, since the method does not
            train it.
    """
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    plain = isinstance(backbone, VisionTransformer) and isinstance(backbone.patch_embed, PatchEmbed)
    if not plain or backbone.pos_embed is None or backbone.attn_pool is not None:
        raise UserError(
            f"method.name={method}: works on the patches of a plain Vision Transformer; "
            f"set for example backbone.name=vit_small_patch16_224"
        )
    if pooled and backbone.global_pool == "token":
        raise UserError(
            f"method.name={method}: trains patches, not the class token; "
            f"set backbone.options={{class_token: false, global_pool: avg}}"
        )


def sincos(rows: int, columns: int, dim: int) -> Tensor:
    """(rows * columns, dim) fixed positions: sines and cosines of the row, then of the column.

    Source: MAE, section 3 (arXiv 2111.06377), MoCo v3, section 5 (arXiv 2104.02057).
    Raises: UserError if dim is not a multiple of 4.
    """
    if dim % 4:
        raise UserError(
            f"sine-cosine positions need a width that is a multiple of 4, not {dim}; change the "
            f"backbone or the decoder's or predictor's width"
        )
    frequency = 10_000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in (row, column)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)


def fix_positions(backbone: Backbone) -> None:
    """Fix the positions: sines and cosines in place of initial ones, zero for a class token; those
    of an encoder with `weights_were_loaded` as they are, since it was trained with them."""
    if getattr(backbone, "weights_were_loaded", False):
        backbone.pos_embed.requires_grad_(False)
        return
    table = sincos(*backbone.patch_embed.grid_size, backbone.embed_dim)
    prefix = backbone.pos_embed.shape[1] - len(table)
    table = torch.cat([torch.zeros(prefix, table.shape[1]), table])[None]
    backbone.pos_embed = nn.Parameter(table.to(backbone.pos_embed), requires_grad=False)


def patches(x: Tensor, backbone: Backbone) -> Tensor:
    """(B, C, H, W) -> (B, N, C P P): the pixels of each patch."""
    height, width = backbone.patch_embed.patch_size
    x = x.unfold(2, height, height).unfold(3, width, width)  # (B, C, rows, columns, P, P)
    return x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def pick(tokens: Tensor, at: Tensor) -> Tensor:
    """Tokens (B, N, D), indices (B, n) -> the tokens at these indices (B, n, D)."""
    return tokens.gather(1, at[..., None].expand(-1, -1, tokens.shape[-1]))


def run(
    backbone: Backbone,
    x: Tensor,
    *,
    keep: Tensor | None = None,
    real: Tensor | None = None,
    masked: Tensor | None = None,
    mask_token: Tensor | None = None,
) -> Tensor:
    """The encoder's tokens after its last normalisation: (B, prefix + N, D).

    Args:
        x: (B, 3, H, W).
        keep: (B, n) indices of the patches that are processed; default: all N.
        real: (B, n) bool, false for padding, to which no token attends.
        masked: (B, N) bool, the patches whose embedding is replaced by mask_token (D,).
    """
    embedded = backbone.patch_embed(
        x
    )  # (B, N, D); (B, rows, columns, D) if the image size may vary
    if masked is not None:
        masked = masked.view(*embedded.shape[:-1], 1)
        embedded = torch.where(masked, mask_token.to(embedded.dtype), embedded)
    tokens = backbone._pos_embed(embedded)
    prefix = backbone.num_prefix_tokens
    attend = None
    if keep is not None:
        tokens = torch.cat([tokens[:, :prefix], pick(tokens[:, prefix:], keep)], dim=1)
    if real is not None:
        attend = attention_mask(real, prefix).to(tokens.dtype)
    tokens = backbone.norm_pre(tokens)
    for block in backbone.blocks:
        tokens = block(tokens) if attend is None else block(tokens, attn_mask=attend)
    return backbone.norm(tokens)


def attention_mask(real: Tensor, prefix: int = 0) -> Tensor:
    """(B, n) bool -> (B, 1, 1, prefix + n) float: 0 where true, -infinity where false."""
    real = torch.nn.functional.pad(real, (prefix, 0), value=True)
    return torch.zeros(real.shape, device=real.device).masked_fill(~real, -torch.inf)[:, None, None]


def pool(backbone: Backbone, tokens: Tensor) -> Tensor:
    """Tokens (B, prefix + N, D) -> features (B, D), as in the encoder's own forward."""
    return backbone.forward_head(tokens, pre_logits=True)
