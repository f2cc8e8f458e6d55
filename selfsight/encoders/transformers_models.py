"""timm's model for a Vision Transformer that transformers' config.json describes."""

import functools
from typing import Any

import torch
from torch import nn

from selfsight.encoders.foreign.described import Described

Options = dict[str, Any]

# (width, depth, heads) -> what timm's names call it
_SIZES = {
    (192, 12, 3): "tiny",
    (384, 12, 6): "small",
    (768, 12, 12): "base",
    (1024, 24, 16): "large",
    (1280, 32, 16): "huge",
    (1536, 40, 24): "giant",
    (4096, 40, 32): "7b",
}
_DINOV3_HUGE = (1280, 32, 20)  # with a gated MLP, as "small_plus"


def backbone_for(described: Described) -> dict[str, Any]:
    """The keys of the section `backbone` that build this model: the name of timm's and, where it
    differs from that, options and norm_eps. What timm's model cannot be is found when the weights
    are loaded."""
    kind = described.model_type.partition("_")[0]
    name = {"vit": _vit, "dinov2": _dinov2, "dinov3": _dinov3}[kind](described)
    model = _without_weights(name)
    options = _shape_options(model, described) | _other_options(model, described)
    if described.theta is not None:
        options["global_pool"] = "token"  # transformers' features; timm's are a mean of the patches
    eps = {} if model.norm.eps == described.eps else {"norm_eps": described.eps}
    return {"name": name, "options": options, **eps}


@functools.cache
def _without_weights(name: str) -> nn.Module:
    """timm's model of this name, of which only shapes are read."""
    import timm

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return timm.create_model(name, num_classes=0)


def _vit(described: Described) -> str:
    import timm

    size = _size(described, "tiny")
    names = [f"vit_{size}_patch{patch}_224" for patch in (described.patch, 16, 14)]
    return next(name for name in (*names, "vit_tiny_patch16_224") if timm.is_model(name))


def _dinov2(described: Described) -> str:
    registers = "_reg4" if described.registers else ""
    size = "giant" if described.gated else _size(described, "small")
    known = size in ("base", "large", "giant") and described.gated == (size == "giant")
    return f"vit_{size if known else 'small'}_patch14{registers}_dinov2"


def _dinov3(described: Described) -> str:
    size = _size(described, "small")
    if _shape(described) == _DINOV3_HUGE:
        size = "huge"
    if described.gated:
        size = {"huge": "huge_plus", "7b": "7b"}.get(size, "small_plus")
    elif size not in ("base", "large"):
        size = "small"
    size = "small_plus" if size == "7b" and described.bias else size
    return f"vit_{size}_patch16_dinov3{'_qkvb' if described.bias else ''}"


def _shape(described: Described) -> tuple[int, int, int]:
    return described.width, described.depth, described.heads


def _size(described: Described, otherwise: str) -> str:
    return _SIZES.get(_shape(described), otherwise)


def _shape_options(model: Any, described: Described) -> Options:
    """Options for the shapes in which timm's model differs."""
    reg = "reg_tokens" if described.theta is None else "num_reg_tokens"
    wanted = {
        "embed_dim": (model.embed_dim, described.width),
        "depth": (len(model.blocks), described.depth),
        "num_heads": (model.blocks[0].attn.num_heads, described.heads),
        "patch_size": (model.patch_embed.patch_size[0], described.patch),
        reg: (0 if model.reg_token is None else model.reg_token.shape[1], described.registers),
    }
    return {key: right for key, (own, right) in wanted.items() if own != right}


def _other_options(model: Any, described: Described) -> Options:
    rotary, gated = described.theta is not None, described.gated
    options: Options = {}
    if described.hidden * model.embed_dim != model.blocks[0].mlp.fc2.in_features * described.width:
        packed = 2 if gated and not rotary else 1  # both halves are one layer
        # half a unit more, so that rounding down gives the number
        options["mlp_ratio"] = (packed * described.hidden + 0.5) / described.width
        if gated and rotary:
            options["swiglu_align_to"] = 1
    if not rotary and not described.bias:
        options["qkv_bias"] = False
    if not rotary and described.activation != ("silu" if gated else "gelu"):
        options["act_layer"] = described.activation
    if rotary and described.theta != model.rope.temperature:
        options["rope_temperature"] = described.theta
    return options
