"""timm's Vision Transformers with patches left out or replaced by a mask token.

Its `VisionTransformer` adds positions to the tokens; its `Eva`, as which it builds EVA-02 and
DINOv3, rotates queries and keys by them (RoPE, arXiv 2104.09864, 2403.13298).
"""

import torch
from torch import Tensor, nn

from selfsight.errors import UserError
from selfsight.methods.method import Backbone
from selfsight.methods.positions import kept_angles
from selfsight.recompute import in_parts


def require_vit(backbone: Backbone, method: str, pooled: bool = False) -> None:
    """Raises: UserError if the encoder is not a Vision Transformer whose tokens can be used.

    Args:
        pooled: also refuse one whose features are the class token, which the method does not train.
    """
    from timm.layers import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    plain = isinstance(backbone, VisionTransformer | Eva) and backbone.attn_pool is None
    plain = plain and isinstance(backbone.patch_embed, PatchEmbed)
    if not plain or (backbone.pos_embed is None and getattr(backbone, "rope", None) is None):
        raise UserError(
            f"method.name={method}: works on the patches of a plain Vision Transformer; "
            f"set for example backbone.name=vit_small_patch16_224"
        )
    if not isinstance(backbone.patch_drop, nn.Identity | type(None)):
        raise UserError(
            f"method.name={method}: chooses the patches itself; remove "
            f"backbone.options.patch_drop_rate"
        )
    if isinstance(backbone, Eva) and isinstance(backbone.norm, nn.Identity):
        raise UserError(
            f"method.name={method}: this encoder normalises its features only, not its tokens; set "
            f"backbone.options={{use_fc_norm: false}}"
        )
    if pooled and backbone.global_pool == "token":
        raise UserError(
            f"method.name={method}: trains patches, not the class token; "
            f"set backbone.options={{class_token: false, global_pool: avg}}"
        )


def patches(x: Tensor, backbone: Backbone) -> Tensor:
    """(B, C, H, W) -> (B, N, C P P): the pixels of each patch."""
    down, right = backbone.patch_embed.patch_size
    x = x.unfold(2, down, down).unfold(3, right, right)  # (B, C, rows, columns, P, P)
    return x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def channels(backbone: Backbone) -> int:
    """C of the images; of an encoder that sees the mean of RGB that of RGB."""
    return getattr(backbone, "image_channels", backbone.patch_embed.proj.in_channels)


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

    def tokens_of(x, keep, real, masked) -> Tensor:  # of a part of the batch
        embedded = backbone.patch_embed(x)  # (B, N, D); (B, rows, columns, D) if sizes may vary
        if masked is not None:
            here = masked.view(*embedded.shape[:-1], 1)
            embedded = torch.where(here, mask_token.to(embedded.dtype), embedded)
        tokens, prefix = backbone._pos_embed(embedded), backbone.num_prefix_tokens
        tokens, rope = tokens if isinstance(tokens, tuple) else (tokens, None)
        if keep is not None:
            tokens = torch.cat([tokens[:, :prefix], pick(tokens[:, prefix:], keep)], dim=1)
            rope = None if rope is None else kept_angles(rope, keep)
        more = {} if real is None else {"attn_mask": real.to(tokens.dtype)}
        tokens = backbone.norm_pre(tokens)
        for number, block in enumerate(backbone.blocks):
            if rope is not None:  # each block has its own in a mixed one
                more["rope"] = rope[number] if backbone.rope_mixed else rope
            tokens = block(tokens, **more)
        return backbone.norm(tokens)

    real = None if real is None else attention_mask(real, backbone.num_prefix_tokens)
    return in_parts(backbone, tokens_of, x, keep, real, masked)


def attention_mask(real: Tensor, prefix: int = 0) -> Tensor:
    """(B, n) bool -> (B, 1, 1, prefix + n) float: 0 where true, -infinity where false."""
    real = torch.nn.functional.pad(real, (prefix, 0), value=True)
    return torch.zeros(real.shape, device=real.device).masked_fill(~real, -torch.inf)[:, None, None]


def pool(backbone: Backbone, tokens: Tensor) -> Tensor:
    """Tokens (B, prefix + N, D) -> features (B, D), as in the encoder's own forward."""
    return backbone.forward_head(tokens, pre_logits=True)
