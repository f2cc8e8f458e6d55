"""UP's `net`: the method, its encoder, or a classifier on an encoder."""

from typing import Any

from selfsight.interop.report import Phase
from selfsight.interop.up_encoders import read_encoder
from selfsight.interop.up_values import NOTHING, REPLACED, TAKEN, Keys

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
LOSSES = ("label_smooth_ce", "softmax_cross_entropy", "ce", "stce")  # all cross-entropies
OURS = "the encoder says how wide its features are"
CLASSES = "the data say how many classes there are"


def phase_of(net: Any) -> Phase:
    """What a net is for; without one, as on UP's page, a fine-tuning."""
    entries = [e for e in net if isinstance(e, dict)] if isinstance(net, list) else []
    if any(e.get("type") == "ssl" or "multi_model" in e for e in entries):
        return "pretrain"
    frozen = any(e.get("type") == "self" or e.get("name") == "fix_layers" for e in entries)
    return "linear-augmented" if frozen else "finetune"


def wrapper_of(net: Any) -> str | None:
    """The first wrapper in a net, before anything is checked."""
    for entry in net if isinstance(net, list) else []:
        wrappers = entry.get("wrappers") if isinstance(entry, dict) else None
        for wrapper in wrappers if isinstance(wrappers, list) else []:
            kind = wrapper.get("type") if isinstance(wrapper, dict) else None
            return kind if isinstance(kind, str) else None
    return None


def read_net(r: Keys) -> None:
    """The entries of `net`, in any order: the loss's keys go over those of the method."""
    for entry in sorted(r.each("net"), key=lambda e: e.tree.get("type") in POST):
        entry.text("name")
        entry.tell("name", NOTHING, why="what an entry is follows from its type")
        kind = entry.value("type")
        if kind == "ssl":
            _ssl(entry)
        elif kind in POST:
            entry.tell("type", TAKEN)
            _loss(entry.inside("kwargs"))
        elif r.d.pretrains:
            entry.kind(("ssl", "base_ssl_postprocess"), "entry of a pretraining")
        elif kind == "self":
            entry.tell("type", TAKEN)
            _frozen(entry.inside("kwargs"))
        elif kind in HEADS:
            entry.tell("type", TAKEN)
            _head(entry.inside("kwargs"))
        elif entry.tree.get("name") in ("head", "post_process"):
            entry.kind((*HEADS, POST[1]), "head or post_process")
        else:
            read_encoder(entry)


def _ssl(r: Keys) -> None:
    """`multi_model` and `wrappers`, either first."""
    wrappers, models = r.each("wrappers"), r.each("multi_model")
    r.tell("type", TAKEN, why="a pretraining")
    r.ignore("the encoder is all that it has", "prev")
    kind = wrappers[0].kind(WRAPPERS, "wrapper") if len(wrappers) == 1 else None
    if kind is None:
        if len(wrappers) != 1:
            r.refuse("wrappers", f"expected one wrapper: {', '.join(WRAPPERS)}")
        r.ignore("of a wrapper that is refused", "multi_model")
        return
    wrappers[0].tell("type", TAKEN, METHODS[kind](wrappers[0].inside("kwargs")))
    names = WRAPPERS[kind][0]
    first = None
    for model in models:
        if model.kind(names, f"encoder of {kind}", "name") is None:
            continue
        model.tell("name", TAKEN, why="the encoder" if first is None else "its slow copy")
        same = {key: v for key, v in model.tree.items() if key != "name"}
        if first not in (None, same):
            model.refuse("name", "is a slow copy of the other; give it the same type and kwargs")
        first = first or same
        read_encoder(model)
    if not models:
        r.refuse("multi_model", f"expected the encoder: {', '.join(names)}")


# Methods ------------------------------------------------------------------------------------------


def _moco(k: Keys) -> str:
    hidden = k.whole("q_plane", 2048)
    v2 = k.flag("mlp", False)
    by = k.d.put("method.name", "moco_v2" if v2 else "moco_v1")
    k.tell("mlp", TAKEN, by, "a projector of two layers" if v2 else "a linear projector")
    k.tell("q_plane", TAKEN, k.d.put("method.hidden_dim", hidden) if v2 else "", OURS)
    k.ignore(OURS, "k_plane")
    k.carry("dim", "method.output_dim", Keys.whole, 128)
    k.carry("K", "method.queue_size", Keys.whole, 65536)
    k.carry("m", "method.momentum", default=0.999)
    k.carry("T", "method.temperature", default=0.07)
    k.whole("group_size")
    why = "statistics over all processes, where it shuffled keys between them"
    k.tell("group_size", REPLACED, "sync_batchnorm", why)
    if k.d.processes > 1 and k.d.tree.get("device") != "cpu":
        k.d.put("sync_batchnorm", True)
    return by


def _moco_v3(k: Keys) -> str:
    k.carry("dim", "method.output_dim", Keys.whole, 256)
    k.carry("mlp_dim", "method.hidden_dim", Keys.whole, 4096)
    k.carry("m", "method.momentum", default=0.999, why="grows to 1 by half a cosine")
    k.carry("T", "method.temperature", default=0.2)
    return k.d.put("method.name", "moco_v3")


def _simclr(k: Keys) -> str:
    layers = k.whole("num_mlp_layer", 2)
    if layers not in (2, 3):
        k.refuse("num_mlp_layer", "SimCLR has 2 layers (v1) or 3 (v2)")
    by = k.d.put("method.name", "simclr_v2" if layers == 3 else "simclr")
    k.tell("num_mlp_layer", TAKEN, by, "with batch norm; v2 keeps the first layer in the encoder")
    k.only("mlp", (True,), "the projector", "the loss needs a projector; remove it")
    k.carry("dim", "method.hidden_dim", Keys.whole, 2048)
    k.carry("output_dim", "method.output_dim", Keys.whole, 128)
    k.d.put("method.temperature", 0.07)  # fixed in UP's code, which has no key for it
    return by


def _simsiam(k: Keys) -> str:
    k.carry("plane", "method.hidden_dim", Keys.whole, 2048)
    k.carry("dim", "method.output_dim", Keys.whole, 2048)
    k.carry("pred_dim", "method.predictor_dim", Keys.whole, 512)
    k.inside("normalize").ignore("the heads' batch norm is as the encoder's", "type", "kwargs")
    return k.d.put("method.name", "simsiam")


METHODS = {
    "moco": _moco,
    "moco_vit": _moco_v3,
    "simclr": _simclr,
    "simsiam": _simsiam,
    "MAE": lambda k: k.d.put("method.name", "mae"),
}


# Losses and heads ---------------------------------------------------------------------------------


def _loss(k: Keys) -> None:
    """`ssl_loss` of a pretraining, `cls_loss` of a classifier (and of UP's first MoCo v1)."""
    wrapper = k.d.wrapper
    if k.d.pretrains and wrapper not in WRAPPERS:  # which is refused there
        k.skip()
        return
    known = WRAPPERS[wrapper][1] if k.d.pretrains else LOSSES
    for key in ("ssl_loss", "cls_loss"):
        loss = k.inside(key)
        kind = loss.kind(known, f"loss of {wrapper or 'a classifier'}")
        if kind is None:
            continue
        loss.tell("type", TAKEN, why="the loss of the method" if wrapper else "cross-entropy")
        for place in (loss, loss.inside("kwargs")):  # MAE's files have the keys beside the type
            _loss_keys(place, kind)


def _loss_keys(k: Keys, kind: str) -> None:
    k.only("loss_weight", (1,), "no other loss", "there is one loss; give optimizer.lr instead")
    if kind == "mae_loss":
        k.carry("norm_pix_loss", "method.norm_pix", Keys.flag)
    elif kind == "contrastive_loss":
        _tau(k)
    elif kind == "label_smooth_ce":
        k.carry("smooth_ratio", "method.label_smoothing")
        k.ignore(CLASSES, "num_classes")


def _tau(k: Keys) -> None:
    """The loss is scaled by 2 tau there, by 2 T here."""
    tau, t = k.number("tau"), k.d.tree.get("method", {}).get("temperature")
    if tau == t:
        k.tell("tau", TAKEN, why="the loss is scaled by twice the temperature")
    elif k.d.adaptive:
        k.tell("tau", NOTHING, why="the optimizer's steps do not depend on the loss's scale")
    elif tau is not None:
        k.refuse("tau", f"the loss is scaled by twice the temperature here: use {t}, scale lr")


def _frozen(k: Keys) -> None:
    if k.value("freeze_patterns") == ["backbone"]:
        k.tell("freeze_patterns", TAKEN, why="the whole encoder is frozen, in eval mode")
    else:
        k.refuse("freeze_patterns", "the encoder is frozen as a whole: use [backbone]")


def _head(k: Keys) -> None:
    k.ignore(CLASSES, "num_classes")
    k.ignore(OURS, "in_plane", "use_pool")
    k.only("input_feature_idx", (-1,), "the last features", "the last features are classified")
    k.only("dropout", (0,), "none", "the head has no dropout here; remove it")
    pooled = k.choose("cls_type", ("token", "avg_pool", "pool"), "cls_type")
    if pooled:
        by = k.d.put("backbone.options.global_pool", "token" if pooled == "token" else "avg")
        k.tell("cls_type", TAKEN, by, "of a checkpoint of UP's")
    bn = k.flag("bn")
    if bn and k.d.phase == "finetune":
        k.refuse("bn", "the head of a fine-tuned network has no batch norm here; remove it")
    elif bn is not None:
        k.tell("bn", TAKEN, "" if k.d.phase == "finetune" else k.d.put("method.batch_norm", bn))
