"""timm's Vision Transformers, token by token: some patches left out, or replaced, or looked up."""

import torch
from torch import Tensor, nn

from selfsight.errors import UserError


def require_plain_vit(backbone: nn.Module, method: str, pooled: bool = False) -> None:
    """Raises: UserError if the encoder is no plain Vision Transformer with added positions.

    Args:
        pooled: nor may its features be the class token's, which this method does not train.
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
    Raises: UserError if dim is no multiple of 4.
    """
    if dim % 4:
        raise UserError(f"sine-cosine positions need a width that 4 divides, not {dim}")
    frequency = 10_000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in (row, column)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)


def fix_positions(backbone: nn.Module) -> None:
    """Put fixed sine-cosine positions in place of the learned ones; a class token's is zero."""
    table = sincos(*backbone.patch_embed.grid_size, backbone.embed_dim)
    prefix = backbone.pos_embed.shape[1] - len(table)
    table = torch.cat([torch.zeros(prefix, table.shape[1]), table])[None]
    backbone.pos_embed = nn.Parameter(table.to(backbone.pos_embed), requires_grad=False)


def patches(x: Tensor, backbone: nn.Module) -> Tensor:
    """(B, 3, H, W) -> (B, N, 3 P P): the pixels of each patch."""
    height, width = backbone.patch_embed.patch_size
    x = x.unfold(2, height, height).unfold(3, width, width)  # (B, 3, rows, columns, P, P)
    return x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def pick(tokens: Tensor, at: Tensor) -> Tensor:
    """(B, N, D), (B, n) -> (B, n, D): the tokens at those places."""
    return tokens.gather(1, at[..., None].expand(-1, -1, tokens.shape[-1]))


def run(
    backbone: nn.Module,
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
        keep: (B, n) places of the patches that go in; the others are left out. Default: all N.
        real: (B, n) bool, which of them count; the others fill up and nobody attends to them.
        masked: (B, N) bool, patches whose embedding is replaced by mask_token, (D,).
    """
    embedded = backbone.patch_embed(x)  # (B, N, D), or (B, rows, columns, D) for sizes that vary
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
    """(B, n) bool -> (B, 1, 1, prefix + n) float: 0 for keys to attend to, else -infinity."""
    real = torch.nn.functional.pad(real, (prefix, 0), value=True)
    return torch.zeros(real.shape, device=real.device).masked_fill(~real, -torch.inf)[:, None, None]


def pool(backbone: nn.Module, tokens: Tensor) -> Tensor:
    """(B, prefix + N, D) -> (B, D) as in the encoder's own forward."""
    return backbone.forward_head(tokens, pre_logits=True)
