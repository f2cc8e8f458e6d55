"""UP's encoders: their names in timm, and their arguments."""

from typing import Any

from selfsight.config import near
from selfsight.interop.section import REPLACED, TAKEN
from selfsight.interop.up_draft import Keys

_DECODER = {"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16}
# type -> timm's name, options of the backbone, keys of the method
ENCODERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{f"resnet{n}": (f"resnet{n}", {}, {}) for n in (18, 34, 50, 101, 152)},
    # MoCo v3's ViT-S has 12 heads, timm's has 6
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
ARGUMENTS = (
    ("fixed", "out_layers", ([4],), "only the features of the last layer are used"),
    ("fixed", "out_strides", ([32],), "only the features of the last layer are used"),
    ("fixed", "dropout", (0,), "the encoder has no dropout"),
    ("fixed", "attention_dropout", (0,), "the encoder has no dropout in its attention"),
    ("fixed", "qkv_bias", (True,), "timm's ViTs have this bias"),
    ("copy", "img_size", "backbone.image_size", "whole"),
    ("copy", "zero_init_residual", "backbone.options.zero_init_last", "flag"),
)
MAE = (
    ("copy", "mask_ratio", "method.mask_ratio", "number", 0.75),
    ("copy", "norm_pix_loss", "method.norm_pix", "flag", False),
)
PRETRAINING = ("ignore", "only for pretraining", "stop_grad_conv1", "mask_ratio", "norm_pix_loss")


def read_encoder(r: Keys) -> None:
    """An entry of `multi_model`, or the encoder of a classifier."""
    name, out = _name_of(r), r.out
    if name is None:
        r.skip()
        return
    k = r.inside("kwargs")
    if k.value("frozen_layers") and out.phase != "linear-augmented":
        k.refuse("frozen_layers", "all layers are trained; remove it")
    else:
        k.ignore("no layer is frozen, or all are", "frozen_layers")
    _batch_norm(k.inside("normalize"))
    start = k.inside("initializer")
    why = "" if start.value("method") == "msra" else "timm initialises the weights"
    start.record("method", REPLACED if why else TAKEN, why=why)
    if out.phase == "linear-augmented":
        k.ignore("a frozen encoder is in eval mode, where nothing is dropped", "drop_path")
    else:
        k.copy("drop_path", "backbone.drop_path" if out.pretrains else "drop_path")
    k.read(ARGUMENTS)
    if not out.pretrains:
        why = "the last normalisation is part of the encoder, as in MAE's own code"
        without = k.value("last_norm", "flag") is False
        k.record("last_norm", REPLACED if without else TAKEN, why=why if without else "")
        k.read([PRETRAINING])
        return
    for key, default in ENCODERS.get(name, ("", {}, {}))[2].items():
        out.put(f"method.{key}", default)
    if out.wrapper == "moco_vit":
        why = "the patch embedding keeps its random weights"
        k.copy("stop_grad_conv1", "method.freeze_patch_embed", "flag", False)
        k.record("stop_grad_conv1", TAKEN, "method.freeze_patch_embed", why)
    if out.wrapper == "MAE":
        k.read(MAE)


def _name_of(r: Keys) -> str | None:
    """Set backbone.name; None if no encoder has the name."""
    name = r.value("type")
    if not isinstance(name, str) or (name not in ENCODERS and not _in_timm(name)):
        hint, known = near(str(name), ENCODERS), ", ".join(ENCODERS)
        r.refuse("type", f"no such encoder.{hint} Known: {known}, or a model of timm")
        return None
    native, options, _ = ENCODERS.get(name, (name, {}, {}))
    r.set("type", "backbone.name", native, "" if name == native else "timm's name")
    for key, default in options.items():
        r.out.put(f"backbone.options.{key}", default)
    return name


def _in_timm(name: str) -> bool:
    import timm  # takes a second: only for names that the table does not have

    return timm.is_model(name)


def _batch_norm(r: Keys) -> None:
    kind, out = r.choose("type", ("solo_bn", *SYNCED), "normalisation"), r.out
    if kind in SYNCED and out.pretrains and not out.on_cpu:
        why = "statistics over all processes"
        r.set("type", "sync_batchnorm", True, why, TAKEN)
    elif kind == "solo_bn" and "sync_batchnorm" in out.tree:
        why = "statistics over all processes; UP shuffled the keys between processes"
        r.record("type", REPLACED, "sync_batchnorm=true", why)
    elif kind:
        why = "on CPUs, each process has its own statistics" if out.on_cpu else ""
        why = why or "frozen, or each process has its own statistics"
        r.record("type", TAKEN if kind == "solo_bn" else REPLACED, why=why)
    r.fixed("kwargs", ({},), "batch norm has timm's settings")
