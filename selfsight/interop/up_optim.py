"""UP's `trainer.optimizer`: which, its arguments, and which parameters are treated apart."""

from typing import Any

from selfsight.interop.up_values import NOTHING, REPLACED, TAKEN, Keys

_SGD = ("sgd", {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0})
_ADAMW = ("adamw", {"betas": [0.9, 0.999], "weight_decay": 0.01})
# type -> ours, and UP's defaults of native keys
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": _SGD,
    "FusedFP16SGD": _SGD,
    "LARS": ("lars", {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0}),
    "LAMB": ("lamb", {"betas": [0.9, 0.999], "weight_decay": 0.0}),
    "AdamW": _ADAMW,
    "FusedFP16AdamW": _ADAMW,
}
READ = {"nesterov": Keys.flag, "betas": Keys.pair}  # others are numbers
SHAPED = "tensors of fewer than two dimensions have none"
# what `pconfig` may exempt from weight decay: the rule here does already
NO_DECAY = ("ndim_is1", ".bias", "bias", "pos_embed", "cls_token", "dist_token")
GROUPS = ("ln_b", "ln_w", "linear_b", "conv_b", "bn_b", "bn_w")


def read_optimizer(r: Keys) -> None:
    """Sets d.lr and d.adaptive besides."""
    kind = r.kind(OPTIMIZERS, "optimizer")
    if kind is None:
        return
    k, groups, d = r.inside("kwargs"), r.inside("pconfig"), r.d
    name, defaults = OPTIMIZERS[kind]
    r.tell("type", TAKEN, d.put("optimizer.name", name))
    d.adaptive = name != "sgd"
    d.lr = k.positive("lr")
    for key, default in defaults.items():
        why = SHAPED if key == "weight_decay" and not groups else ""
        k.carry(key, f"optimizer.{key}", READ.get(key, Keys.number), default, why)
    if name == "lars":
        for key in ("eta", "trust_coefficient"):
            k.carry(key, "optimizer.trust_coefficient")
        k.ignore("as PyTorch's; zero-initialised tensors move", "eps", "epsilon")
    own = 1e-6 if name == "lamb" else 1e-8
    k.only("eps", (own,), "the optimizer's own", f"eps is {own} here; remove it")
    k.only("dampening", (0,), "none", "there is no dampening here; remove it")
    k.only("amsgrad", (False,), "none", "there is no amsgrad here; remove it")
    r.only("register_type", ("base",), "the one way to build it", "only base is here")
    _groups(groups)
    _layer_decay(groups.inside("layer_decay"), k)
    _special(r)


def _groups(r: Keys) -> None:
    """`pconfig`."""
    patterns = r.value("nodecay")
    if isinstance(patterns, list) and set(map(str, patterns)) <= set(NO_DECAY):
        r.tell("nodecay", TAKEN, why=SHAPED)
    elif patterns is not None:
        r.refuse("nodecay", f"only {', '.join(NO_DECAY)} have no weight decay here")
    for group in map(r.inside, GROUPS):
        group.only("type", ("bias", "weight"), SHAPED, "expected bias or weight")
        for place in (group, group.inside("kwargs")):
            place.only("weight_decay", (0,), SHAPED, "biases and norms have no weight decay here")


def _layer_decay(r: Keys, kwargs: Keys) -> None:
    if r.d.phase != "finetune":
        if r:
            r.refuse("value", "layer-wise decay is only for fine-tuning; remove layer_decay")
            r.skip()
        return
    r.value("type")
    r.tell("type", TAKEN, why="the encoder says which layers it has")
    r.carry("value", "method.layer_decay")
    base = r.positive("base_lr")
    r.tell("base_lr", TAKEN, "optimizer.lr", "with layer_decay this is the rate")
    if base not in (None, r.d.lr):
        r.d.lr = base
        kwargs.tell("lr", NOTHING, why="layer_decay.base_lr is the rate")


def _special(r: Keys) -> None:
    """`special_param_group`: SimSiam's predictor at a constant rate, and nothing else."""
    for group in r.each("special_param_group"):
        if group.value("key") == "predictor" and r.d.wrapper == "simsiam":
            group.tell("key", TAKEN, why="SimSiam's predictor has a constant rate")
        elif set(group.tree) == {"key"}:
            group.tell("key", NOTHING, why="a group without settings of its own")
        else:
            group.refuse("key", "no group of parameters has settings of its own here; remove it")
        for other in ("lr", "weight_decay"):
            if other in group:
                group.refuse(other, "of one group it cannot be set here; remove it")


def tell_lr(r: Keys) -> None:
    """optimizer.lr, once the scheduler has said whether it is that of one image."""
    k, d = r.inside("kwargs"), r.d
    if d.lr is None:
        if r and k.value("lr") is None:
            k.refuse("lr", "name the learning rate")
        return
    own = k.tree.get("lr") == d.lr  # not that of layer_decay
    if d.per_image:
        d.put("optimizer.lr_scaling", "linear")
        by = f"{d.put('optimizer.lr', round(d.lr * 256, 12))}, optimizer.lr_scaling=linear"
        why = "it is the rate of one image, times the batch; here that of 256, scaled linearly"
    else:
        d.put("optimizer.lr_scaling", "none")
        by, why = d.put("optimizer.lr", d.lr), ""
    if own:
        k.tell("lr", REPLACED if why else TAKEN, by, why)
