"""What a Vision Transformer makes of the patches of an image: the attention of its last block and
the features of its patches, as maps over the image."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selfsight.encoders.dense import layer_maps, model_inside
from selfsight.methods.method import Backbone

COMPONENTS = 3  # of the features: red, green and blue
RANGE = (0.01, 0.99)  # quantiles of a component that become black and full colour


@dataclass(frozen=True)
class Attention:
    """Attention to the patches in the last block.

    Attributes:
        maps: (B, heads, rows, columns), not negative. The weights of a class token and registers
            are left out, so the sum over the patches is at most 1.
        of_class_token: from the class token; else the mean over all patches, of an encoder without
            a class token.
    """

    maps: Tensor
    of_class_token: bool


def vision_transformer(encoder: nn.Module) -> Backbone | None:
    """The encoder as a Vision Transformer whose patches have maps; None if it is another network.

    >>> vision_transformer(timm.create_model("resnet18")) is None
    True
    """
    from timm.layers import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    inner = model_inside(encoder)
    known = isinstance(inner, VisionTransformer | Eva) and type(inner).__module__.startswith("timm")
    return inner if known and isinstance(inner.patch_embed, PatchEmbed) else None


@torch.no_grad()
def attention_maps(vit: Backbone, x: Tensor) -> Attention | None:
    """The attention of the last block, image by image; None if the block has not one attention
    with a distribution for each head.

    Args:
        vit: in eval mode.
        x: (B, C, h, w), normalised.

    >>> from selfsight.testing import tiny_vit
    >>> attention_maps(tiny_vit(16), torch.zeros(1, 3, 16, 16)).maps.shape
    torch.Size([1, 2, 4, 4])
    """
    grid = vit.patch_embed.dynamic_feat_size(x.shape[2:])
    prefix, of_class_token = vit.num_prefix_tokens, vit.cls_token is not None
    maps = []
    for image in x.split(1):  # all pairs of tokens of many images need much memory
        found = last_attention(vit, image)
        if found is None:
            return None
        rows = found[:, :, :1] if of_class_token else found[:, :, prefix:]
        maps.append(rows[..., prefix:].mean(2).unflatten(-1, grid))
    return Attention(torch.cat(maps), of_class_token)


@torch.no_grad()
def last_attention(vit: Backbone, x: Tensor) -> Tensor | None:
    """Who attends to whom in the last block: (B, heads, T, T), where [b, h, i] sums to 1, as timm
    computes it if it fuses nothing; None as in `attention_maps`.

    Differential attention, the difference of two distributions, gives None.
    """
    found: list[Tensor] = []
    layers = [m for m in vit.blocks[-1].modules() if hasattr(m, "fused_attn")]
    if len(layers) != 1:
        return None
    (layer,) = layers
    with _unfused(layer):
        seen = layer.attn_drop.register_forward_hook(lambda *arguments: found.append(arguments[2]))
        try:
            vit.forward_features(x)
        finally:
            seen.remove()
    whole = len(found) == 1 and found[0].shape[1] == layer.num_heads
    return found[0] if whole else None


@contextmanager
def _unfused(layer: nn.Module) -> Iterator[None]:
    """Let a layer compute its attention step by step."""
    before, layer.fused_attn = layer.fused_attn, False
    try:
        yield
    finally:
        layer.fused_attn = before


@torch.no_grad()
def patch_features(vit: Backbone, x: Tensor) -> Tensor:
    """The features of the patches after the last block and its normalisation: (B, rows, columns,
    D)."""
    (maps,) = layer_maps(vit, x)
    return maps.permute(0, 2, 3, 1).float()


def as_colours(features: Tensor) -> tuple[Tensor, float]:
    """The first three principal components over all patches of all images as red, green and blue.

    Equal features give equal colours; signs are chosen by scikit-learn, so that the largest
    weight of a component is positive. A component is scaled by its 1 % and 99 % quantiles.

    Args:
        features: (B, rows, columns, D).
    Returns: (B, rows, columns, 3) in [0, 1], and the fraction of the variance in the components;
        gray and 0 if all features are equal.

    >>> as_colours(torch.rand(2, 4, 4, 8))[0].shape
    torch.Size([2, 4, 4, 3])
    """
    from sklearn.decomposition import PCA

    flat = features.flatten(0, 2).double().numpy()
    colours = torch.full((len(flat), COMPONENTS), 0.5)
    if not flat.var(axis=0).sum() > 1e-12:
        return colours.unflatten(0, features.shape[:3]), 0.0
    solver = "covariance_eigh" if len(flat) > flat.shape[1] else "full"  # both are exact
    pca = PCA(min(COMPONENTS, *flat.shape), svd_solver=solver)
    found = torch.from_numpy(pca.fit_transform(flat))
    low, high = found.quantile(torch.tensor(RANGE).to(found), dim=0)
    scaled = ((found - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    colours[:, : scaled.shape[1]] = scaled.float()
    return colours.unflatten(0, features.shape[:3]), float(pca.explained_variance_ratio_.sum())
