"""UP's encoders: their names in timm, and their arguments."""

from typing import Any

from tacit.config import near
from tacit.dialects.report import Reader
from tacit.dialects.up_values import (
    NOTHING,
    REPLACED,
    TAKEN,
    Draft,
    anything,
    carry,
    flag,
    ignore,
    number,
    only,
    value,
    whole,
)

_DECODER = {"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16}
# type -> timm's name, its options, keys of the method
ENCODERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{f"resnet{n}": (f"resnet{n}", {}, {}) for n in (18, 34, 50, 101, 152)},
    # 12 heads: MoCo v3's ViT-S, where timm's has 6
    "moco_vit_small": ("vit_small_patch16_224", {"num_heads": 12}, {}),
    "moco_vit_base": ("vit_base_patch16_224", {}, {}),
    "mae_vit_base_patch16_dec512d8b": ("vit_base_patch16_224", {}, _DECODER),
    "mae_vit_large_patch16_dec512d8b": ("vit_large_patch16_224", {}, _DECODER),
    "mae_vit_huge_patch14_dec512d8b": ("vit_huge_patch14_224", {}, _DECODER),
    "mae_vit_base_patch16_dec512d2b": (
        "vit_base_patch16_224",
        {},
        {**_DECODER, "decoder_depth": 2},
    ),
    **{
        name: (name, {}, {})
        for name in ("vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224")
    },
}
for _size, _patch in (("base", 16), ("large", 16), ("huge", 14)):
    _name = f"mae_vit_{_size}_patch{_patch}"
    ENCODERS[_name] = ENCODERS[f"{_name}_dec512d8b"]

SYNCED = ("sync_bn", "pt_sync_bn", "link_sync_bn")


def read_encoder(r: Reader, d: Draft, wrapper: str) -> None:
    """An entry of `multi_model`."""
    name = _name_of(r, d)
    k = r.inside("kwargs")
    if name is None:
        r.tell("kwargs", NOTHING, why="of an encoder that is refused")
        return
    for key, default in ENCODERS[name][2].items() if name in ENCODERS else ():
        d.put(f"method.{key}", default)
    _resnet(k, d)
    _transformer(k, d)
    if wrapper == "moco_vit":
        why = "the patch embedding keeps its random weights"
        carry(k, d, "stop_grad_conv1", "method.freeze_patch_embed", flag, False)
        k.tell("stop_grad_conv1", TAKEN, "method.freeze_patch_embed", why)
    if wrapper == "MAE":
        carry(k, d, "mask_ratio", "method.mask_ratio", number, 0.75)
        beside = d.tree["method"].get("norm_pix", False)  # of the loss, if that was read first
        carry(k, d, "norm_pix_loss", "method.norm_pix", flag, beside)


def read_evaluated(r: Reader, d: Draft) -> None:
    """The encoder of a classifier: what checkpoints of other libraries do not say themselves."""
    name = _name_of(r, d)
    k = r.inside("kwargs")
    if name is None:
        r.tell("kwargs", NOTHING, why="of an encoder that is refused")
        return
    _resnet(k, d)
    _transformer(k, d)
    last = flag(k, "last_norm")
    if last is not None:
        why = "" if last else "the last normalisation is part of the encoder, as in MAE's own code"
        k.tell("last_norm", TAKEN if last else REPLACED, why=why)
    ignore(k, "of pretraining", "stop_grad_conv1", "mask_ratio", "norm_pix_loss")


def _name_of(r: Reader, d: Draft) -> str | None:
    """Set backbone.name; None if there is no such encoder."""
    name = anything(r, "type")
    if not isinstance(name, str) or (name not in ENCODERS and not _in_timm(name)):
        hint = near(str(name), ENCODERS)
        r.refuse("type", f"no such encoder here.{hint} Known: {', '.join(ENCODERS)}, or timm's")
        return None
    ours, options, _ = ENCODERS.get(name, (name, {}, {}))
    by = d.put("backbone.name", ours)
    r.tell("type", TAKEN if name == ours else REPLACED, by, "" if name == ours else "timm's name")
    for key, default in options.items():
        d.put(f"backbone.options.{key}", default)
    return name


def _in_timm(name: str) -> bool:
    import timm  # one second: only for names that the table lacks

    return timm.is_model(name)


def _resnet(k: Reader, d: Draft) -> None:
    frozen = anything(k, "frozen_layers")
    if frozen and d.phase != "linear-augmented":
        k.refuse("frozen_layers", "all layers are trained here; remove it")
    else:
        k.tell("frozen_layers", NOTHING, why="nothing, or all, is frozen")
    for key in ("out_layers", "out_strides"):
        found = anything(k, key)
        if isinstance(found, list) and len(found) > 1:
            k.refuse(key, "only the last layer's features are used; name that alone")
        k.tell(key, TAKEN, why="the last layer's features")
    norm = k.inside("normalize")
    _batch_norm(norm, d)
    start = k.inside("initializer")
    how = value(start, "method")
    why = "" if how == "msra" else "weights are drawn as timm does"
    start.tell("method", TAKEN if how == "msra" else REPLACED, why=why)
    carry(k, d, "zero_init_residual", "backbone.options.zero_init_last", flag)


def _batch_norm(norm: Reader, d: Draft) -> None:
    kind = value(norm, "type")
    cpu = d.tree.get("device") == "cpu"
    if kind in SYNCED and d.pretrains and not cpu:
        norm.tell("type", TAKEN, d.put("sync_batchnorm", True), "statistics over all processes")
    elif kind == "solo_bn" and "sync_batchnorm" in d.tree:
        why = "over all processes, where it shuffled keys between them"
        norm.tell("type", REPLACED, "sync_batchnorm=true", why)
    elif kind in (*SYNCED, "solo_bn"):
        why = "frozen, or of each process alone" if not cpu else "on CPUs of each process alone"
        norm.tell("type", TAKEN if kind == "solo_bn" else REPLACED, why=why)
    elif kind is not None:
        norm.refuse("type", f"no such normalisation here; use solo_bn or {SYNCED[0]}")
    if value(norm, "kwargs"):
        norm.refuse("kwargs", "batch norm has timm's settings here; remove them")
    else:
        norm.tell("kwargs", NOTHING, why="it is empty")


def _transformer(k: Reader, d: Draft) -> None:
    if d.phase == "linear-augmented":
        ignore(k, "a frozen encoder is in eval mode, where nothing is dropped", "drop_path")
    else:
        key = "backbone.drop_path" if d.pretrains else "drop_path"
        carry(k, d, "drop_path", key, number, None if d.pretrains else 0.0)
    for key in ("dropout", "attention_dropout"):
        only(k, key, (0,), "none", "there is no such dropout here; set 0 or remove it")
    only(k, "qkv_bias", (True,), "timm's default", "timm's ViTs have one; remove it")
    carry(k, d, "img_size", "backbone.image_size", whole)
