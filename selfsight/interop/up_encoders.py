"""UP's encoders: their names in timm, and their arguments."""

from typing import Any

from selfsight.config import near
from selfsight.interop.up_values import NOTHING, REPLACED, TAKEN, Keys

_DECODER = {"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16}
# type -> timm's name, its options, keys of the method
ENCODERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{f"resnet{n}": (f"resnet{n}", {}, {}) for n in (18, 34, 50, 101, 152)},
    # 12 heads: MoCo v3's ViT-S, where timm's has 6
    "moco_vit_small": ("vit_small_patch16_224", {"num_heads": 12}, {}),
    "moco_vit_base": ("vit_base_patch16_224", {}, {}),
    **{
        f"mae_vit_{size}{decoder}": (f"vit_{size}_224", {}, _DECODER)
        for size in ("base_patch16", "large_patch16", "huge_patch14")
        for decoder in ("_dec512d8b", "")
    },
    "mae_vit_base_patch16_dec512d2b": (
        "vit_base_patch16_224",
        {},
        {**_DECODER, "decoder_depth": 2},
    ),
    **{name: (name, {}, {}) for name in ("vit_small_patch16_224", "vit_base_patch16_224")},
}
SYNCED = ("sync_bn", "pt_sync_bn", "link_sync_bn")


def read_encoder(r: Keys) -> None:
    """An entry of `multi_model`, or the encoder of a classifier."""
    name = _name_of(r)
    if name is None:
        r.skip()
        return
    k = r.inside("kwargs")
    _resnet(k)
    _transformer(k)
    if not r.d.pretrains:
        why = "the last normalisation is part of the encoder, as in MAE's own code"
        without = k.flag("last_norm") is False
        k.tell("last_norm", REPLACED if without else TAKEN, why=why if without else "")
        k.ignore("of pretraining", "stop_grad_conv1", "mask_ratio", "norm_pix_loss")
        return
    for key, default in ENCODERS.get(name, ("", {}, {}))[2].items():
        r.d.put(f"method.{key}", default)
    if r.d.wrapper == "moco_vit":
        why = "the patch embedding keeps its random weights"
        k.carry("stop_grad_conv1", "method.freeze_patch_embed", Keys.flag, False)
        k.tell("stop_grad_conv1", TAKEN, "method.freeze_patch_embed", why)
    if r.d.wrapper == "MAE":
        k.carry("mask_ratio", "method.mask_ratio", default=0.75)
        k.carry("norm_pix_loss", "method.norm_pix", Keys.flag, False)


def _name_of(r: Keys) -> str | None:
    """Set backbone.name; None if there is no such encoder."""
    name = r.value("type")
    if not isinstance(name, str) or (name not in ENCODERS and not _in_timm(name)):
        hint = near(str(name), ENCODERS)
        r.refuse("type", f"no such encoder here.{hint} Known: {', '.join(ENCODERS)}, or timm's")
        return None
    ours, options, _ = ENCODERS.get(name, (name, {}, {}))
    by, why = r.d.put("backbone.name", ours), "" if name == ours else "timm's name"
    r.tell("type", REPLACED if why else TAKEN, by, why)
    for key, default in options.items():
        r.d.put(f"backbone.options.{key}", default)
    return name


def _in_timm(name: str) -> bool:
    import timm  # one second: only for names that the table lacks

    return timm.is_model(name)


def _resnet(k: Keys) -> None:
    if k.value("frozen_layers") and k.d.phase != "linear-augmented":
        k.refuse("frozen_layers", "all layers are trained here; remove it")
    else:
        k.tell("frozen_layers", NOTHING, why="nothing, or all, is frozen")
    for key, last in (("out_layers", [4]), ("out_strides", [32])):
        otherwise = f"only the last layer's features are used: give {last}, or remove it"
        k.only(key, (last,), "the last layer's features", otherwise)
    _batch_norm(k.inside("normalize"))
    start = k.inside("initializer")
    why = "" if start.value("method") == "msra" else "weights are drawn as timm does"
    start.tell("method", REPLACED if why else TAKEN, why=why)
    k.carry("zero_init_residual", "backbone.options.zero_init_last", Keys.flag)


def _batch_norm(norm: Keys) -> None:
    kind = norm.choose("type", ("solo_bn", *SYNCED), "normalisation")
    cpu = norm.d.tree.get("device") == "cpu"  # has no statistics over all processes
    if kind in SYNCED and norm.d.pretrains and not cpu:
        by = norm.d.put("sync_batchnorm", True)
        norm.tell("type", TAKEN, by, "statistics over all processes")
    elif kind == "solo_bn" and "sync_batchnorm" in norm.d.tree:
        why = "over all processes, where it shuffled keys between them"
        norm.tell("type", REPLACED, "sync_batchnorm=true", why)
    elif kind:
        why = "on CPUs of each process alone" if cpu else "frozen, or of each process alone"
        norm.tell("type", TAKEN if kind == "solo_bn" else REPLACED, why=why)
    norm.only("kwargs", ({},), "it is empty", "batch norm has timm's settings here; remove them")


def _transformer(k: Keys) -> None:
    if k.d.phase == "linear-augmented":
        k.ignore("a frozen encoder is in eval mode, where nothing is dropped", "drop_path")
    else:
        k.carry("drop_path", "backbone.drop_path" if k.d.pretrains else "drop_path")
    for key in ("dropout", "attention_dropout"):
        k.only(key, (0,), "none", "there is no such dropout here; set 0 or remove it")
    k.only("qkv_bias", (True,), "timm's default", "timm's ViTs have one; remove it")
    k.carry("img_size", "backbone.image_size", Keys.whole)
