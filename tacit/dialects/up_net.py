"""UP's `net`: the method, its encoder, or a classifier on an encoder."""

from typing import Any

from tacit.dialects.report import Phase, Reader
from tacit.dialects.up_encoders import read_encoder, read_evaluated
from tacit.dialects.up_values import (
    NOTHING,
    REPLACED,
    TAKEN,
    Draft,
    anything,
    carry,
    choose,
    flag,
    ignore,
    number,
    only,
    text,
    value,
    whole,
)

# wrapper -> names of its encoders, its losses
WRAPPERS = {
    "moco": (("encoder_q", "encoder_k"), ("moco_loss", "ce")),
    "moco_vit": (("encoder_q", "encoder_k"), ("contrastive_loss",)),
    "simclr": (("encoder",), ("simclr_loss", "moco_loss")),
    "simsiam": (("base_encoder", "encoder"), ("simsiam_loss",)),
    "MAE": (("model",), ("mae_loss",)),
}
TWO_VIEWS = ("moco", "moco_vit", "simclr", "simsiam")
HEADS = ("base_cls_head", "vit_head")
# None: softmax cross-entropy, nothing to set
LOSSES = ("label_smooth_ce", "softmax_cross_entropy", "ce", "stce")
OURS = "the encoder says how wide its features are"


def phase_of(net: Any) -> Phase:
    """What a net is for; without one, as on UP's page, a fine-tuning."""
    entries = [e for e in net if isinstance(e, dict)] if isinstance(net, list) else []
    if any(e.get("type") == "ssl" for e in entries):
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


def read_net(r: Reader, d: Draft) -> None:
    """The entries of `net`, in any order."""
    entries = r.each("net")
    wrapper = wrapper_of(r.tree.get("net"))
    for entry in entries:
        kind = anything(entry, "type")
        name = text(entry, "name")
        entry.tell("name", NOTHING, why="what an entry is follows from its type")
        if kind == "ssl":
            _ssl(entry, d)
        elif kind in ("base_ssl_postprocess", "base_cls_postprocess"):
            entry.tell("type", TAKEN)
            _loss(entry.inside("kwargs"), d, wrapper)
        elif d.pretrains:
            entry.refuse("type", "expected ssl or base_ssl_postprocess in a pretraining")
        elif kind == "self":
            entry.tell("type", TAKEN)
            _frozen(entry.inside("kwargs"))
        elif kind in HEADS:
            entry.tell("type", TAKEN)
            _head(entry.inside("kwargs"), d)
        elif name == "backbone" or kind is not None:
            read_evaluated(entry, d)


def _ssl(r: Reader, d: Draft) -> None:
    """`multi_model` and `wrappers`, either first."""
    wrappers, models = r.each("wrappers"), r.each("multi_model")
    r.tell("type", TAKEN, why="a pretraining")
    ignore(r, "the encoder is all that it has", "prev")
    if len(wrappers) != 1:
        r.refuse("wrappers", f"expected one wrapper: {', '.join(WRAPPERS)}")
        return
    kind = choose(wrappers[0], "type", WRAPPERS, "wrapper")
    kwargs = wrappers[0].inside("kwargs")
    if kind is None:
        return
    by = METHODS[kind](kwargs, d)
    wrappers[0].tell("type", TAKEN, by)
    names = WRAPPERS[kind][0]
    first = None
    for model in models:
        name = choose(model, "name", names, f"encoder of {kind}")
        if name is None:
            continue
        model.tell("name", TAKEN, why="the encoder" if first is None else "its slow copy")
        same = {key: v for key, v in model.tree.items() if key != "name"}
        if first not in (None, same):
            model.refuse("name", "is a slow copy of the other; give it the same type and kwargs")
        first = first or same
        read_encoder(model, d, kind)
    if not models:
        r.refuse("multi_model", f"expected the encoder: {', '.join(names)}")


# Methods ------------------------------------------------------------------------------------------


def _moco(k: Reader, d: Draft) -> str:
    hidden = whole(k, "q_plane", 2048)
    v2 = flag(k, "mlp", False)
    by = d.put("method.name", "moco_v2" if v2 else "moco_v1")
    k.tell("mlp", TAKEN, by, "a projector of two layers" if v2 else "a linear projector")
    if v2:
        d.put("method.hidden_dim", hidden)
    k.tell("q_plane", TAKEN, f"method.hidden_dim={hidden}" if v2 else "", OURS)
    ignore(k, OURS, "k_plane")
    carry(k, d, "dim", "method.output_dim", whole, 128)
    carry(k, d, "K", "method.queue_size", whole, 65536)
    carry(k, d, "m", "method.momentum", number, 0.999)
    carry(k, d, "T", "method.temperature", number, 0.07)
    whole(k, "group_size")
    why = "statistics over all processes, where it shuffled keys between them"
    k.tell("group_size", REPLACED, "sync_batchnorm", why)
    if d.processes > 1 and d.tree.get("device") != "cpu":
        d.put("sync_batchnorm", True)
    return by


def _moco_v3(k: Reader, d: Draft) -> str:
    by = d.put("method.name", "moco_v3")
    carry(k, d, "dim", "method.output_dim", whole, 256)
    carry(k, d, "mlp_dim", "method.hidden_dim", whole, 4096)
    carry(k, d, "m", "method.momentum", number, 0.999, "grows to 1 by half a cosine")
    carry(k, d, "T", "method.temperature", number, 0.2)
    return by


def _simclr(k: Reader, d: Draft) -> str:
    layers = whole(k, "num_mlp_layer", 2)
    if layers not in (2, 3):
        k.refuse("num_mlp_layer", "SimCLR has 2 layers (v1) or 3 (v2)")
    by = d.put("method.name", "simclr_v2" if layers == 3 else "simclr")
    why = "with batch norm; v2 keeps the first layer in the encoder"
    k.tell("num_mlp_layer", TAKEN, by, why)
    only(k, "mlp", (True,), "the projector", "the loss needs a projector; remove it")
    carry(k, d, "dim", "method.hidden_dim", whole, 2048)
    carry(k, d, "output_dim", "method.output_dim", whole, 128)
    d.put("method.temperature", 0.07)  # fixed in UP's code, which has no key for it
    return by


def _simsiam(k: Reader, d: Draft) -> str:
    by = d.put("method.name", "simsiam")
    carry(k, d, "plane", "method.hidden_dim", whole, 2048)
    carry(k, d, "dim", "method.output_dim", whole, 2048)
    carry(k, d, "pred_dim", "method.predictor_dim", whole, 512)
    norm = k.inside("normalize")
    ignore(norm, "the heads' batch norm is as the encoder's", "type", "kwargs")
    return by


def _mae(k: Reader, d: Draft) -> str:
    return d.put("method.name", "mae")


METHODS = {
    "moco": _moco,
    "moco_vit": _moco_v3,
    "simclr": _simclr,
    "simsiam": _simsiam,
    "MAE": _mae,
}


# Losses and heads ---------------------------------------------------------------------------------


def _loss(k: Reader, d: Draft, wrapper: str | None) -> None:
    """`ssl_loss` of a pretraining, `cls_loss` of a classifier (and of UP's first MoCo v1)."""
    for key in ("ssl_loss", "cls_loss"):
        loss = k.inside(key)
        known = WRAPPERS[wrapper][1] if wrapper in WRAPPERS else LOSSES
        kind = choose(loss, "type", known, f"loss of {wrapper or 'a classifier'}")
        if kind is None:
            ignore(loss, "of a loss that is refused", "kwargs")
            continue
        loss.tell("type", TAKEN, why="the loss of the method" if d.pretrains else "cross-entropy")
        inner = loss.inside("kwargs")
        for place in (loss, inner):  # UP's MAE files have their keys beside the type
            _loss_keys(place, d, kind)


def _loss_keys(k: Reader, d: Draft, kind: str) -> None:
    only(k, "loss_weight", (1,), "no other loss", "there is one loss; give optimizer.lr instead")
    if kind == "mae_loss":
        carry(k, d, "norm_pix_loss", "method.norm_pix", flag)
    elif kind == "contrastive_loss":
        _tau(k, d)
    elif kind == "label_smooth_ce":
        carry(k, d, "smooth_ratio", "method.label_smoothing", number)
        ignore(k, "the data say how many classes there are", "num_classes")


def _tau(k: Reader, d: Draft) -> None:
    """The loss is scaled by 2 tau there, by 2 T here."""
    tau, t = number(k, "tau"), d.tree.get("method", {}).get("temperature", 0.2)
    if tau == t:
        k.tell("tau", TAKEN, why="the loss is scaled by twice the temperature")
    elif d.adaptive:
        k.tell("tau", NOTHING, why="the optimizer's steps do not depend on the loss's scale")
    elif "tau" in k:
        k.refuse("tau", f"the loss is scaled by twice the temperature here: use {t}, scale lr")


def _frozen(k: Reader) -> None:
    asked = value(k, "freeze_patterns")
    if isinstance(asked, list) and "backbone" in asked:
        k.tell("freeze_patterns", TAKEN, why="the whole encoder is frozen, in eval mode")
    else:
        k.refuse("freeze_patterns", "the encoder is frozen as a whole: use [backbone]")


def _head(k: Reader, d: Draft) -> None:
    ignore(k, "the data say how many classes there are", "num_classes")
    ignore(k, OURS, "in_plane", "use_pool")
    only(k, "input_feature_idx", (-1,), "the last features", "the last features are classified")
    only(k, "dropout", (0,), "none", "the head has no dropout here; remove it")
    pooled = choose(k, "cls_type", ("token", "avg_pool", "pool"), "cls_type")
    if pooled:
        how = "token" if pooled == "token" else "avg"
        d.put("backbone.options.global_pool", how)
        k.tell("cls_type", TAKEN, f"backbone.options.global_pool={how}", "of a checkpoint of UP's")
    bn = flag(k, "bn")
    if bn and d.phase == "finetune":
        k.refuse("bn", "the head of a fine-tuned network has no batch norm here; remove it")
    elif bn is not None:
        by = "" if d.phase == "finetune" else d.put("method.batch_norm", bn)
        k.tell("bn", TAKEN, by)
