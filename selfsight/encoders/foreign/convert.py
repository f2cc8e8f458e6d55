"""Tensors of other libraries as timm's models use them, where more than a name differs."""

import re

import torch
from torch import Tensor

from selfsight.encoders.foreign.format import State

# DINOv3's key has no bias; those of query and value are 0 in some of the published models
ZERO_BIASES = r"blocks\.\d+\.attn\.[qkv]_bias"


def class_position_into_token(state: State) -> State:
    """DINOv2 with registers: timm's model adds no position to the class token, so it is a part of
    the token."""
    registers = next((k for k in state if k.endswith("register_tokens")), "register_tokens")
    prefix = registers.removesuffix("register_tokens")
    name = next((k for k in ("pos_embed", "position_embeddings") if prefix + k in state), "")
    token, positions = state.get(f"{prefix}cls_token"), state.get(prefix + name)
    whole = isinstance(token, Tensor) and isinstance(positions, Tensor)
    if registers not in state or not whole or positions.ndim != 3 or token.ndim != 3:
        return state
    own = {f"{prefix}cls_token": token + positions[:, :1]}
    return {**state, **own, prefix + name: positions[:, 1:]}


def split_masked_bias(state: State) -> State:
    """DINOv3: the bias of query, key and value, times the mask that it is multiplied with, as
    `q_bias`, `k_bias` and `v_bias`."""
    made = dict(state)
    for name, bias in state.items():
        stem = name.removesuffix("qkv.bias")
        if stem == name or not isinstance(bias, Tensor) or bias.ndim != 1 or len(bias) % 3:
            continue
        mask = state.get(f"{name}_mask")
        if isinstance(mask, Tensor) and mask.shape == bias.shape:
            bias = bias * mask
            del made[f"{name}_mask"]
        del made[name]
        made |= dict(zip((f"{stem}{part}_bias" for part in "qkv"), bias.chunk(3), strict=True))
    return made


def join_transformers(state: State) -> State:
    """transformers' ViT and DINOv2: query, key and value are one layer, and so are both halves of a
    gated MLP. The later names of its modules, and those of its files."""
    made = dict(state)
    for name in state:
        for kind in () if name.startswith("decoder.") else ("weight", "bias"):
            stem = name.removesuffix(f"attention.query.{kind}")
            if stem != name:
                parts = [f"{stem}attention.{part}.{kind}" for part in ("query", "key", "value")]
                _join(made, parts, f"{stem}qkv.{kind}")
            stem = name.removesuffix(f"q_proj.{kind}")
            if stem != name:
                parts = [f"{stem}{part}_proj.{kind}" for part in "qkv"]
                _join(made, parts, f"{stem}qkv.{kind}")
            stem = name.removesuffix(f"gate_proj.{kind}")
            if stem != name:
                parts = [f"{stem}{part}_proj.{kind}" for part in ("gate", "up")]
                _join(made, parts, f"{stem}weights_in.{kind}")
    return made


def join_dinov3(state: State) -> State:
    """transformers' DINOv3: the weights of query, key and value are one; the biases are not. What
    is `up_proj` in a plain MLP is another layer in a gated one."""
    made = dict(state)
    for name in state:
        stem = name.removesuffix("q_proj.weight")
        if stem != name:
            _join(made, [f"{stem}{part}_proj.weight" for part in "qkv"], f"{stem}qkv.weight")
        up = re.fullmatch(r"(.+\.mlp\.)up_proj\.(weight|bias)", name)
        if up and f"{up[1]}gate_proj.weight" in state:
            made[f"{up[1]}gated_proj.{up[2]}"] = made.pop(name)
    return made


def _join(state: State, parts: list[str], whole: str) -> None:
    """Replace parts of equal shape and type by one tensor with all of them in this order. Others
    stay, so that their names are refused."""
    found = [state.get(part) for part in parts]
    kinds = {(v.shape, v.dtype) if isinstance(v, Tensor) else None for v in found}
    if len(kinds) > 1 or None in kinds or whole in state:
        return
    for part in parts:
        del state[part]
    state[whole] = torch.cat(found)
