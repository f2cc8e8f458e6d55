"""Positions of patches that are a formula: sines and cosines of rows and columns."""

import torch
from torch import Tensor, nn

from selfsight.errors import UserError
from selfsight.methods.method import Backbone


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
    of an encoder with `weights_were_loaded` as they are, since it was trained with them. Rotated
    positions (RoPE) have no weights."""
    if backbone.pos_embed is None:
        return
    if getattr(backbone, "weights_were_loaded", False):
        backbone.pos_embed.requires_grad_(False)
        return
    table = sincos(*backbone.patch_embed.grid_size, backbone.embed_dim)
    prefix = backbone.pos_embed.shape[1] - len(table)
    table = torch.cat([torch.zeros(prefix, table.shape[1]), table])[None]
    backbone.pos_embed = nn.Parameter(table.to(backbone.pos_embed), requires_grad=False)


def kept_angles(rope: Tensor, keep: Tensor) -> Tensor:
    """RoPE's angles of all patches (N, d), or of each block and head (L, heads, N, d) -> those of
    the kept ones (B, 1, n, d), or (L, B, heads, n, d)."""
    if rope.ndim == 2:
        return rope[keep][:, None]
    return rope[:, :, keep].transpose(1, 2)
