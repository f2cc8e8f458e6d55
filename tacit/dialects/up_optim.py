"""UP's `trainer.optimizer`: which, its arguments, and which parameters are treated apart."""

from typing import Any

from tacit.dialects.report import Reader
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
    pair,
    value,
)

# type -> ours, and UP's defaults of native keys
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("sgd", {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}),
    "FusedFP16SGD": ("sgd", {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}),
    "LARS": ("lars", {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0}),
    "LAMB": ("lamb", {"betas": [0.9, 0.999], "weight_decay": 0.0}),
    "AdamW": ("adamw", {"betas": [0.9, 0.999], "weight_decay": 0.01}),
    "FusedFP16AdamW": ("adamw", {"betas": [0.9, 0.999], "weight_decay": 0.01}),
}
READ = {"momentum": number, "nesterov": flag, "weight_decay": number, "betas": pair}
SHAPED = "tensors of fewer than two dimensions have none"
# what `pconfig` may exempt from weight decay: the rule here does already
NO_DECAY = ("ndim_is1", ".bias", "bias", "pos_embed", "cls_token", "dist_token")
GROUPS = ("ln_b", "ln_w", "linear_b", "conv_b", "bn_b", "bn_w")


def read_optimizer(r: Reader, d: Draft) -> None:
    """Sets d.lr and d.adaptive besides."""
    kind = choose(r, "type", OPTIMIZERS, "optimizer")
    k, groups = r.inside("kwargs"), r.inside("pconfig")
    if kind is None:
        ignore(r, "of an optimizer that is refused", "kwargs", "pconfig", "special_param_group")
        return
    name, defaults = OPTIMIZERS[kind]
    r.tell("type", TAKEN, d.put("optimizer.name", name))
    d.adaptive = name != "sgd"
    d.lr = number(k, "lr")
    if d.lr is not None and d.lr <= 0:
        k.refuse("lr", "expected a number above 0")
        d.lr = None
    for key, default in defaults.items():
        exempt = key == "weight_decay" and not groups
        carry(k, d, key, f"optimizer.{key}", READ[key], default, SHAPED if exempt else "")
    if name == "lars":
        for key in ("eta", "trust_coefficient"):
            carry(k, d, key, "optimizer.trust_coefficient", number)
        why = "as PyTorch's; zero-initialised tensors move"
        ignore(k, why, "eps", "epsilon")
    only(k, "eps", (1e-8, 1e-6), "the optimizer's own", "eps cannot be set here; remove it")
    only(k, "dampening", (0,), "none", "there is no dampening here; remove it")
    only(k, "amsgrad", (False,), "none", "there is no amsgrad here; remove it")
    only(r, "register_type", ("base",), "the one way to build it", "only base is here")
    _groups(groups, k, d)
    _special(r, d)


def _groups(r: Reader, kwargs: Reader, d: Draft) -> None:
    """`pconfig`."""
    patterns = value(r, "nodecay")
    if isinstance(patterns, list) and set(map(str, patterns)) <= set(NO_DECAY):
        r.tell("nodecay", TAKEN, why=SHAPED)
    elif patterns is not None:
        r.refuse("nodecay", f"only {', '.join(NO_DECAY)} have no weight decay here")
    for name in GROUPS:
        group = r.inside(name)
        only(group, "type", ("bias", "weight"), SHAPED, "expected bias or weight")
        inner = group.inside("kwargs")
        only(inner, "weight_decay", (0,), SHAPED, "biases and norms have no weight decay here")
        only(group, "weight_decay", (0,), SHAPED, "biases and norms have no weight decay here")
    _layer_decay(r.inside("layer_decay"), kwargs, d)


def _layer_decay(r: Reader, kwargs: Reader, d: Draft) -> None:
    if not r:
        return
    if d.phase != "finetune":
        r.refuse("value", "layer-wise decay is only for fine-tuning; remove layer_decay")
        ignore(r, "refused", "type", "base_lr")
        return
    anything(r, "type")
    r.tell("type", TAKEN, why="the encoder says which layers it has")
    carry(r, d, "value", "method.layer_decay", number)
    base = number(r, "base_lr")
    if base is None or base == d.lr:
        r.tell("base_lr", TAKEN, "optimizer.lr", "the same as lr")
    else:
        d.lr = base
        r.tell("base_lr", TAKEN, "optimizer.lr", "with layer_decay this is the rate")
        kwargs.tell("lr", NOTHING, why="layer_decay.base_lr is the rate")


def _special(r: Reader, d: Draft) -> None:
    """`special_param_group`: SimSiam's predictor at a constant rate, and nothing else."""
    for group in r.each("special_param_group"):
        key = value(group, "key")
        simsiam = d.tree.get("method", {}).get("name") == "simsiam"
        if key == "predictor" and simsiam:
            group.tell("key", TAKEN, why="SimSiam's predictor has a constant rate")
        elif set(group.tree) == {"key"}:
            group.tell("key", NOTHING, why="a group without settings of its own")
        else:
            group.refuse("key", "no group of parameters has settings of its own here; remove it")
        for other in ("lr", "weight_decay"):
            if other in group:
                group.refuse(other, "of one group it cannot be set here; remove it")


def tell_lr(r: Reader, d: Draft) -> None:
    """optimizer.lr, once the scheduler has said whether it is that of one image."""
    if d.lr is None:
        return
    k = r.inside("optimizer").inside("kwargs")
    own = "layer_decay" in r.inside("optimizer").inside("pconfig")
    if d.per_image:
        d.put("optimizer.lr_scaling", "linear")
        by = d.put("optimizer.lr", round(d.lr * 256, 12))
        why = "it is the rate of one image, times the batch; here that of 256, scaled linearly"
        k.tell("lr", REPLACED, f"{by}, optimizer.lr_scaling=linear", why)
    else:
        d.put("optimizer.lr_scaling", "none")
        by = d.put("optimizer.lr", d.lr)
        if not own or number(k, "lr") == d.lr:
            k.tell("lr", TAKEN, by)
