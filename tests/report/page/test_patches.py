"""Maps of a Vision Transformer: attention against timm's own output, components against an SVD."""

import functools

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfsight.methods.heads import EncoderWithProjection
from selfsight.report.page.patches import (
    as_colours,
    attention_maps,
    last_attention,
    patch_features,
    vision_transformer,
)
from selfsight.testing import TinyEncoder

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
# class token, registers, and what is special about the attention
MODELS = {
    "plain": ("vit_tiny_patch16_224", {}),
    "norms of q and k": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "no class token": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "registers, layer scale": ("vit_small_patch14_reg4_dinov2", {}),
    "distillation token": ("deit_tiny_distilled_patch16_224", {}),
    "EVA-02, RoPE": ("eva02_tiny_patch14_224", {}),
    "DINOv3, RoPE": ("vit_small_patch16_dinov3", {}),
    "mixed RoPE, no registers": ("vit_small_patch16_rope_mixed_224", {}),
}
named = pytest.mark.parametrize("name", MODELS)


@functools.cache
def build(name: str) -> torch.nn.Module:
    """A small relative with weights that are far from their initial values."""
    model, options = MODELS[name]
    torch.manual_seed(0)
    vit = timm.create_model(model, num_classes=0, **{**SMALL, **options}).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return vit


@functools.cache
def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def of_its_attention(vit: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of the last block's attention, in one fused pass of timm."""
    layer, kept = vit.blocks[-1].attn, []
    assert layer.fused_attn
    hook = layer.register_forward_hook(lambda _, given, out: kept.append((given[0], out)))
    vit.forward_features(x)
    hook.remove()
    return kept[0]


@named
@torch.no_grad()
def test_attention_times_values_is_what_timms_fused_attention_gives(name):
    vit = build(name)
    layer = vit.blocks[-1].attn
    tokens, expected = of_its_attention(vit, images())
    found = last_attention(vit, images())
    assert torch.allclose(found.sum(-1), torch.ones(()), atol=1e-5)
    assert found.std() > 0.01  # uniform attention would fit many values
    count, t, width = tokens.shape
    if layer.qkv is None:  # EVA-02 keeps three layers
        v = layer.v_proj(tokens)
    else:
        v = tokens @ layer.qkv.weight[2 * width :].T
        bias = layer.qkv.bias
        bias = getattr(layer, "v_bias", None) if bias is None else bias[2 * width :]
        v = v if bias is None else v + bias
    v = v.reshape(count, t, layer.num_heads, -1).transpose(1, 2)
    out = layer.proj(layer.norm((found @ v).transpose(1, 2).reshape(count, t, width)))
    assert (out - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    assert layer.fused_attn  # as it was


@torch.no_grad()
def test_attention_of_a_plain_vit_by_its_formula():
    vit = build("plain")
    layer = vit.blocks[-1].attn
    tokens, _ = of_its_attention(vit, images())
    q, k, _ = layer.qkv(tokens).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
    naive = (q @ k.transpose(-1, -2) / 16**0.5).softmax(-1)
    assert torch.allclose(last_attention(vit, images()), naive, atol=1e-6)


@named
@torch.no_grad()
def test_maps_are_rows_of_the_attention_without_prefix(name):
    vit = build(name)
    found, whole = attention_maps(vit, images()), last_attention(vit, images())
    prefix = whole.shape[-1] - 16
    assert found.maps.shape == (2, 3, 4, 4)
    assert found.of_class_token == (name != "no class token")
    if found.of_class_token:
        expected = whole[:, :, 0, prefix:]
    else:
        expected = sum(whole[:, :, i, prefix:] for i in range(prefix, prefix + 16)) / 16
    assert torch.allclose(found.maps.flatten(2), expected, atol=1e-6)


@torch.no_grad()
def test_images_with_other_sides_have_maps_of_their_shape():
    vit = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, **{**SMALL, "img_size": (16, 48)}
    ).eval()
    x = torch.randn(1, 3, 16, 48)
    assert attention_maps(vit, x).maps.shape == (1, 3, 2, 6)
    assert patch_features(vit, x).shape == (1, 2, 6, 48)


@torch.no_grad()
def test_blocks_without_one_distribution_a_head_have_no_maps():
    small = {**SMALL, "num_classes": 0}
    for name in ("vit_small_patch16_36x1_224", "vit_small_patch16_18x2_224"):
        assert vision_transformer(timm.create_model(name, **small)) is not None
    several = timm.create_model("vit_small_patch16_18x2_224", **small).eval()
    difference = timm.create_model(
        "vit_tiny_patch16_224", attn_layer="diff", **{**small, "num_heads": 2}
    ).eval()
    assert attention_maps(several, images()) is attention_maps(difference, images()) is None


def test_only_transformers_of_timm_have_patches():
    vit = build("plain")
    assert vision_transformer(vit) is vision_transformer(EncoderWithProjection(vit, 8)) is vit
    own = type("Own", (timm.models.VisionTransformer,), {"__module__": "mine"})(**SMALL)
    for other in (TinyEncoder(), timm.create_model("resnet18"), torch.nn.Identity(), own):
        assert vision_transformer(other) is None


@named
@torch.no_grad()
def test_patch_features_are_the_tokens_behind_the_prefix(name):
    vit = build(name)
    tokens = vit.forward_features(images())
    expected = tokens[:, vit.num_prefix_tokens :]
    assert torch.allclose(patch_features(vit, images()).flatten(1, 2), expected, atol=1e-5)


# Components ---------------------------------------------------------------------------------------


def test_components_are_those_of_an_svd_over_all_images():
    features = torch.randn(3, 4, 5, 8, generator=torch.Generator().manual_seed(2))
    features = features * torch.linspace(3, 0.1, 8)
    flat = features.reshape(-1, 8).double().numpy()
    centred = flat - flat.mean(0)
    _, scales, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:3] * np.sign(axes[range(3), np.abs(axes[:3]).argmax(1)])[:, None]
    values = centred @ axes.T
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    expected = ((values - low) / (high - low)).clip(0, 1).reshape(3, 4, 5, 3)
    found, share = as_colours(features)
    assert np.allclose(found.numpy(), expected, atol=1e-5)
    assert share == pytest.approx((scales[:3] ** 2).sum() / (scales**2).sum())


@given(st.integers(0, 100), st.floats(-5, 5), st.floats(0.1, 10))
def test_colours_depend_on_no_shift_or_scale_and_on_no_order_of_patches(seed, shift, scale):
    features = torch.randn(2, 3, 3, 6, generator=torch.Generator().manual_seed(seed))
    features = features * torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5, 0.2])  # axes are well apart
    found, _ = as_colours(features)
    assert torch.allclose(as_colours(scale * features + shift)[0], found, atol=1e-3)
    turned, _ = as_colours(features.flip(0, 2))
    assert torch.allclose(turned.flip(0, 2), found, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (1, 1, 2, 8), (2, 4, 4, 2), (1, 2, 2, 1)])
def test_few_patches_or_few_features_leave_components_gray(shape):
    features = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    found, share = as_colours(features)
    assert found.shape == (*shape[:3], 3)
    assert found.isfinite().all()
    assert 0 <= share <= 1 + 1e-9
    assert (found[..., 2] == 0.5).all()
    same, none = as_colours(torch.ones(2, 3, 3, 4))
    assert (same == 0.5).all()
    assert none == 0.0
