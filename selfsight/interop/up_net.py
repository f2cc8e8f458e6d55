"""UP's `net`: the method with its encoder, or a classifier on an encoder."""

from typing import Any

from selfsight.interop.report import Phase
from selfsight.interop.section import REPLACED, TAKEN, Rows
from selfsight.interop.up_draft import Keys
from selfsight.interop.up_encoders import read_encoder

# wrapper -> names of its encoders, its losses
WRAPPERS = {
    "moco": (("encoder_q", "encoder_k"), ("moco_loss", "ce")),
    "moco_vit": (("encoder_q", "encoder_k"), ("contrastive_loss",)),
    "simclr": (("encoder",), ("simclr_loss", "moco_loss")),
    "simsiam": (("base_encoder", "encoder"), ("simsiam_loss",)),
    "MAE": (("model",), ("mae_loss",)),
}
HEADS = ("base_cls_head", "vit_head")
POST = ("base_ssl_postprocess", "base_cls_postprocess")
LOSSES = ("label_smooth_ce", "softmax_cross_entropy", "ce", "stce")  # all are cross-entropies
WIDTH = "the width of the features is known from the encoder"
CLASSES = "the number of classes is known from the data"


def _entries(net: Any) -> list[dict]:
    return [entry for entry in net if isinstance(entry, dict)] if isinstance(net, list) else []


def phase_of(net: Any) -> Phase:
    """The purpose of a net; a file without a net, as on UP's page, is a fine-tuning."""
    entries = _entries(net)
    if any(e.get("type") == "ssl" or "multi_model" in e for e in entries):
        return "pretrain"
    frozen = any(e.get("type") == "self" or e.get("name") == "fix_layers" for e in entries)
    return "linear-augmented" if frozen else "finetune"


def wrapper_of(net: Any) -> str | None:
    """The type of the first wrapper in a net, before anything is checked."""
    wrappers = [w for entry in _entries(net) for w in _entries(entry.get("wrappers"))]
    kind = wrappers[0].get("type") if wrappers else None
    return kind if isinstance(kind, str) else None


def read_net(r: Keys) -> None:
    """The entries of `net`, in any order: keys of the loss are read after those of the method."""
    for entry in sorted(r.each("net"), key=lambda e: e.tree.get("type") in POST):
        entry.value("name", "text")
        entry.ignore("the type of an entry says what it is", "name")
        kind = entry.value("type")
        if kind == "ssl":
            _ssl(entry)
        elif kind in POST:
            entry.record("type", TAKEN)
            _loss(entry.inside("kwargs"))
        elif r.out.pretrains:
            entry.kind(("ssl", "base_ssl_postprocess"), "entry of a pretraining")
        elif kind == "self":
            entry.record("type", TAKEN)
            _frozen(entry.inside("kwargs"))
        elif kind in HEADS:
            entry.record("type", TAKEN)
            _head(entry.inside("kwargs"))
        elif entry.tree.get("name") in ("head", "post_process"):
            entry.kind((*HEADS, POST[1]), "head or post_process")
        else:
            read_encoder(entry)


def _ssl(r: Keys) -> None:
    """`multi_model` and `wrappers`, in any order."""
    wrappers, models = r.each("wrappers"), r.each("multi_model")
    r.record("type", TAKEN, why="a pretraining")
    r.ignore("the encoder is the only input", "prev")
    kind = wrappers[0].kind(WRAPPERS, "wrapper") if len(wrappers) == 1 else None
    if kind is None:
        if len(wrappers) != 1:
            r.refuse("wrappers", f"expected one wrapper: {', '.join(WRAPPERS)}")
        r.ignore("the wrapper is refused", "multi_model")
        return
    _method(wrappers[0], kind)
    names, first = WRAPPERS[kind][0], None
    for model in models:
        if model.kind(names, f"encoder of {kind}", "name") is None:
            continue
        model.record("name", TAKEN, why="the encoder" if first is None else "its slow copy")
        content = {key: value for key, value in model.tree.items() if key != "name"}
        if first not in (None, content):
            why = "is a slow copy of the first encoder; write the same type and kwargs in both"
            model.refuse("name", why)
        first = first or content
        read_encoder(model)
    if not models:
        r.refuse("multi_model", f"expected the encoder: {', '.join(names)}")


# Methods ------------------------------------------------------------------------------------------

# wrapper -> its kwargs
METHODS: dict[str, Rows] = {
    "moco": (
        ("ignore", WIDTH, "k_plane"),
        ("copy", "dim", "method.output_dim", "whole", 128),
        ("copy", "K", "method.queue_size", "whole", 65536),
        ("copy", "m", "method.momentum", "number", 0.999),
        ("copy", "T", "method.temperature", "number", 0.07),
    ),
    "moco_vit": (
        ("copy", "dim", "method.output_dim", "whole", 256),
        ("copy", "mlp_dim", "method.hidden_dim", "whole", 4096),
        ("copy", "m", "method.momentum", "number", 0.999, "increases to 1 along half a cosine"),
        ("copy", "T", "method.temperature", "number", 0.2),
    ),
    "simclr": (
        ("fixed", "mlp", (True,), "the loss needs a projector"),
        ("copy", "dim", "method.hidden_dim", "whole", 2048),
        ("copy", "output_dim", "method.output_dim", "whole", 128),
    ),
    "simsiam": (
        ("copy", "plane", "method.hidden_dim", "whole", 2048),
        ("copy", "dim", "method.output_dim", "whole", 2048),
        ("copy", "pred_dim", "method.predictor_dim", "whole", 512),
        (
            "within",
            "normalize",
            (("ignore", "the heads have the same batch norm as the encoder", "type", "kwargs"),),
        ),
    ),
    "MAE": (),
}
NAMES = {"moco_vit": "moco_v3", "simsiam": "simsiam", "MAE": "mae"}


def _method(wrapper: Keys, kind: str) -> None:
    k, out = wrapper.inside("kwargs"), wrapper.out
    if kind == "moco":
        by = _moco(k)
    elif kind == "simclr":
        by = _simclr(k)
    else:
        by = out.put("method.name", NAMES[kind])
    wrapper.record("type", TAKEN, by)
    k.read(METHODS[kind])


def _moco(k: Keys) -> str:
    hidden, v2 = k.value("q_plane", "whole", 2048), k.value("mlp", "flag", False)
    why = "a projector of two layers" if v2 else "a linear projector"
    by = k.set("mlp", "method.name", "moco_v2" if v2 else "moco_v1", why, TAKEN)
    k.record("q_plane", TAKEN, k.out.put("method.hidden_dim", hidden) if v2 else "", WIDTH)
    k.value("group_size", "whole")
    why = "statistics over all processes; UP shuffled the keys between processes"
    k.record("group_size", REPLACED, "sync_batchnorm", why)
    if k.out.ranks > 1 and not k.out.on_cpu:
        k.out.put("sync_batchnorm", True)
    return by


def _simclr(k: Keys) -> str:
    layers = k.value("num_mlp_layer", "whole", 2)
    if layers not in (2, 3):
        k.refuse("num_mlp_layer", "SimCLR has 2 layers (v1) or 3 (v2)")
    why = "with batch norm; v2 keeps the first layer in the encoder"
    name = "simclr_v2" if layers == 3 else "simclr"
    k.out.put("method.temperature", 0.07)  # fixed in UP's code, which has no key for it
    return k.set("num_mlp_layer", "method.name", name, why, TAKEN)


# Losses and heads ---------------------------------------------------------------------------------

# loss -> its kwargs
LOSS_KEYS: dict[str, Rows] = {
    "mae_loss": (("copy", "norm_pix_loss", "method.norm_pix", "flag"),),
    "label_smooth_ce": (
        ("copy", "smooth_ratio", "method.label_smoothing"),
        ("ignore", CLASSES, "num_classes"),
    ),
}
WEIGHT = ("fixed", "loss_weight", (1,), "there is one loss; change optimizer.lr instead")


def _loss(k: Keys) -> None:
    """`ssl_loss` of a pretraining, `cls_loss` of a classifier (and of UP's first MoCo v1)."""
    wrapper = k.out.wrapper
    if k.out.pretrains and wrapper not in WRAPPERS:  # refused at the wrapper
        k.skip()
        return
    known = WRAPPERS[wrapper][1] if k.out.pretrains else LOSSES
    for key in ("ssl_loss", "cls_loss"):
        loss = k.inside(key)
        kind = loss.kind(known, f"loss of {wrapper or 'a classifier'}")
        if kind is None:
            continue
        loss.record("type", TAKEN, why="the loss of the method" if wrapper else "cross-entropy")
        for place in (loss, loss.inside("kwargs")):  # in MAE's files keys are beside the type
            place.read([WEIGHT, *LOSS_KEYS.get(kind, ())])
            if kind == "contrastive_loss":
                _tau(place)


def _tau(k: Keys) -> None:
    """The factor of the loss: 2 tau in UP, 2 T in Selfsight."""
    tau, t = k.value("tau", "number"), k.out.tree.get("method", {}).get("temperature")
    if tau == t:
        k.record("tau", TAKEN, why="the loss is multiplied by twice the temperature")
    elif k.out.adaptive:
        k.ignore("the optimizer's steps do not depend on the scale of the loss", "tau")
    elif tau is not None:
        why = "the loss is multiplied by twice the temperature T"
        k.refuse("tau", f"{why}: write tau: {t}, and multiply lr by {tau}/{t}")


def _frozen(k: Keys) -> None:
    if k.value("freeze_patterns") == ["backbone"]:
        k.record("freeze_patterns", TAKEN, why="the whole encoder is frozen, in eval mode")
    else:
        k.refuse("freeze_patterns", "only the whole encoder can be frozen; write [backbone]")


def _head(k: Keys) -> None:
    k.read(HEAD)
    pooled = k.choose("cls_type", ("token", "avg_pool", "pool"), "cls_type")
    if pooled:
        pool = "token" if pooled == "token" else "avg"
        k.set("cls_type", "backbone.options.global_pool", pool, "for a checkpoint of UP", TAKEN)
    bn = k.value("bn", "flag")
    if bn and k.out.phase == "finetune":
        k.refuse("bn", "the head of a fine-tuned network has no batch norm; remove it")
    elif bn is not None:
        by = "" if k.out.phase == "finetune" else k.out.put("method.batch_norm", bn)
        k.record("bn", TAKEN, by)


HEAD = (
    ("ignore", CLASSES, "num_classes"),
    ("ignore", WIDTH, "in_plane", "use_pool"),
    ("fixed", "input_feature_idx", (-1,), "the last features are classified"),
    ("fixed", "dropout", (0,), "the head has no dropout"),
)
