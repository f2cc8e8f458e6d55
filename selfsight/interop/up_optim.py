"""UP's `trainer.optimizer`: its type, its arguments, and its groups of parameters."""

from typing import Any

from selfsight.interop.section import REPLACED, TAKEN, UNUSED
from selfsight.interop.up_draft import Keys

_SGD = ("sgd", {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0})
_ADAMW = ("adamw", {"betas": [0.9, 0.999], "weight_decay": 0.01})
# type -> Selfsight's name, and UP's defaults of native keys
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": _SGD,
    "FusedFP16SGD": _SGD,
    "LARS": ("lars", {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0}),
    "LAMB": ("lamb", {"betas": [0.9, 0.999], "weight_decay": 0.0}),
    "AdamW": _ADAMW,
    "FusedFP16AdamW": _ADAMW,
}
KINDS = {"nesterov": "flag", "betas": "pair"}  # the other arguments are numbers
DECAYED = "tensors with fewer than two dimensions have no weight decay"
LARS = (
    ("copy", "eta", "optimizer.trust_coefficient"),
    ("copy", "trust_coefficient", "optimizer.trust_coefficient"),
    ("ignore", "as in PyTorch; tensors that start at zero are updated", "eps", "epsilon"),
)
ARGUMENTS = (
    ("fixed", "dampening", (0,), "momentum has no dampening"),
    ("fixed", "amsgrad", (False,), "there is no amsgrad"),
)
# parameters that `pconfig.nodecay` may name: Selfsight never decays them
NO_DECAY = ("ndim_is1", ".bias", "bias", "pos_embed", "cls_token", "dist_token")
NO_WEIGHT_DECAY = ("fixed", "weight_decay", (0,), "biases and norms have no weight decay")
GROUP = (
    ("fixed", "type", ("bias", "weight"), DECAYED),
    NO_WEIGHT_DECAY,
    ("within", "kwargs", (NO_WEIGHT_DECAY,)),
)
GROUPS = [
    ("within", name, GROUP) for name in ("ln_b", "ln_w", "linear_b", "conv_b", "bn_b", "bn_w")
]


def read_optimizer(r: Keys) -> None:
    """Also sets `lr` and `adaptive` of the draft."""
    kind = r.kind(OPTIMIZERS, "optimizer")
    if kind is None:
        return
    k, groups, out = r.inside("kwargs"), r.inside("pconfig"), r.out
    name, defaults = OPTIMIZERS[kind]
    r.set("type", "optimizer.name", name)
    out.adaptive = name != "sgd"
    out.lr = k.value("lr", "positive")
    for key, default in defaults.items():
        why = DECAYED if key == "weight_decay" and not groups else ""
        k.copy(key, f"optimizer.{key}", KINDS.get(key, "number"), default, why)
    if name == "lars":
        k.read(LARS)
    k.fixed("eps", (1e-6 if name == "lamb" else 1e-8,), "the eps of this optimizer is fixed")
    k.read(ARGUMENTS)
    r.fixed("register_type", ("base",), "there is one way to build the optimizer")
    _no_decay(groups)
    groups.read(GROUPS)
    _layer_decay(groups.inside("layer_decay"), k)
    _special(r)


def _no_decay(r: Keys) -> None:
    patterns = r.value("nodecay")
    if isinstance(patterns, list) and set(map(str, patterns)) <= set(NO_DECAY):
        r.record("nodecay", TAKEN, why=DECAYED)
    elif patterns is not None:
        r.refuse("nodecay", f"only these have no weight decay: {', '.join(NO_DECAY)}")


def _layer_decay(r: Keys, kwargs: Keys) -> None:
    if r.out.phase != "finetune":
        if r:
            r.refuse("value", "layer-wise decay is only for fine-tuning; remove layer_decay")
            r.skip()
        return
    r.value("type")
    r.record("type", TAKEN, why="the layers are known from the encoder")
    r.copy("value", "method.layer_decay")
    base = r.value("base_lr", "positive")
    r.record("base_lr", TAKEN, "optimizer.lr", "with layer_decay this is the learning rate")
    if base not in (None, r.out.lr):
        r.out.lr = base
        kwargs.ignore("layer_decay.base_lr is the learning rate", "lr")


def _special(r: Keys) -> None:
    """`special_param_group`: only SimSiam's predictor, with a constant rate, is supported."""
    for group in r.each("special_param_group"):
        if group.value("key") == "predictor" and r.out.wrapper == "simsiam":
            group.record("key", TAKEN, why="SimSiam's predictor has a constant rate")
        elif set(group.tree) == {"key"}:
            group.record("key", UNUSED, why="the group has no settings of its own")
        else:
            group.refuse("key", "a group of parameters cannot have its own settings; remove it")
        for other in ("lr", "weight_decay"):
            if other in group:
                group.refuse(other, "cannot be set for one group of parameters; remove it")


def set_lr(r: Keys) -> None:
    """Set optimizer.lr, once the scheduler's keys tell whether it is the rate for one image."""
    k, out = r.inside("kwargs"), r.out
    if out.lr is None:
        if r and k.value("lr") is None:
            k.refuse("lr", "missing; write the learning rate")
        return
    by, why = out.put("optimizer.lr_scaling", "linear" if out.per_image else "none"), ""
    rate = out.put("optimizer.lr", round(out.lr * 256, 12) if out.per_image else out.lr)
    if out.per_image:
        rate = f"{rate}, {by}"
        why = "UP multiplies the rate for one image by the batch; lr is the rate for 256 images"
    if k.tree.get("lr") == out.lr:  # else layer_decay.base_lr is the rate
        k.record("lr", REPLACED if why else TAKEN, rate, why)
