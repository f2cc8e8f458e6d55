"""UP's `trainer`: the length of training, the learning rate over time, and checkpoints."""

from collections.abc import Callable

from selfsight.interop.section import REPLACED, TAKEN, UNUSED
from selfsight.interop.up_draft import Keys
from selfsight.interop.up_optim import read_optimizer, set_lr

EPOCHS = 100  # Selfsight's default
SHAPES = {"linear": "linear", "exp": "exponential", "cosine": "cosine"}
WARMUP = ("warmup_iter", "warmup_epochs", "warmup_type", "warmup_ratio")
CYCLE = (
    ("fixed", "anneal_strategy", ("cos",), "the rate follows half a cosine"),
    ("fixed", "three_phase", (False,), "the cycle has two phases"),
)


def read_trainer(r: Keys) -> None:
    """Epochs, optimizer, scheduler, checkpoints."""
    _length(r)
    optimizer, scheduler = r.inside("optimizer"), r.inside("lr_scheduler")
    read_optimizer(optimizer)
    key = "warmup_register_type"
    r.out.per_image = scheduler.choose(key, ("no_scale_lr", "base"), key, "base") == "base"
    set_lr(optimizer)
    if scheduler:
        _scheduler(scheduler, optimizer)
    scaling = f"optimizer.lr_scaling={r.out.tree.get('optimizer', {}).get('lr_scaling')}"
    scheduler.record(key, TAKEN, scaling, "whether lr is absolute, or the rate for one image")
    _saving(r)
    why = "pretraining measures on training images, see evaluate.every_epochs"
    why = why if r.out.pretrains else "the test images are classified once, at the end"
    r.ignore(why, "test_freq", "test_start", "is_eval")


def _length(r: Keys) -> None:
    epochs, steps = r.value("max_epoch", "whole"), r.value("max_iter", "whole")
    if steps is not None:
        r.out.put("epochs", int(steps))  # an epoch has at least one step
        r.set("max_iter", "max_steps", int(steps))
        r.ignore("max_iter has precedence", "max_epoch")
    elif epochs is not None:
        r.out.epochs = int(epochs)
        r.set("max_epoch", "epochs", int(epochs))


def _saving(r: Keys) -> None:
    every = r.value("save_freq", "whole", 1) or 1
    if r.value("only_save_latest", "flag", False):
        why = "saved after each epoch"
        r.out.put("checkpoint.every_epochs", 1)
        r.set("only_save_latest", "checkpoint.keep", 1, why, TAKEN)
        r.ignore("only_save_latest saves after each epoch", "save_freq")
    else:
        r.set("save_freq", "checkpoint.every_epochs", every)
        keep = -(-r.out.tree.get("epochs", EPOCHS) // every) + 1
        r.set("only_save_latest", "checkpoint.keep", keep, "all are kept", TAKEN)
    r.value("save_start", "whole")
    r.ignore("checkpoints are saved from the first epoch on", "save_start")


# Learning rate ------------------------------------------------------------------------------------


def _scheduler(r: Keys, optimizer: Keys) -> None:
    r.fixed("lr_register_type", ("base",), "there is one way to build the scheduler")
    kind = r.kind(SCHEDULERS, "scheduler")
    if kind is None:
        return
    name, read = SCHEDULERS[kind]
    r.set("type", "schedule.name", name)
    read(r.inside("kwargs"), r)
    if kind == "OneCycleLR":
        r.ignore("the cycle has its own warm-up", *WARMUP)
        optimizer.inside("kwargs").ignore("max_lr is the learning rate", "lr")
    else:
        _warmup(r)


def _warmup(r: Keys) -> None:
    """In iterations or epochs; the longer one counts, in UP and in Selfsight."""
    out = r.out
    steps, epochs = r.value("warmup_iter", "whole", 0), r.value("warmup_epochs", "number", 0)
    epochs = max(epochs, out.tree["schedule"].get("warmup_epochs", 0)) if epochs >= 0 else epochs
    for key, native, found in (
        ("warmup_iter", "schedule.warmup_steps", steps),
        ("warmup_epochs", "schedule.warmup_epochs", epochs),
    ):
        if found:
            r.set(key, native, found)
        else:
            r.ignore("no warm-up", key)
    shape = r.choose("warmup_type", SHAPES, "warmup_type", "exp")
    ratio = r.value("warmup_ratio", "number", -1)
    if not steps and not epochs:
        r.ignore("there is no warm-up", "warmup_type", "warmup_ratio")
        return
    start = ratio if ratio >= 0 else (1 / out.batch if out.per_image else 1.0)
    if shape == "exp" and not start:
        r.refuse("warmup_ratio", "an exponential warm-up starts above 0; use warmup_type: linear")
    r.set("warmup_ratio", "schedule.warmup_start", start)
    if shape:
        r.set("warmup_type", "schedule.warmup_shape", SHAPES[shape])


def _multi_step(k: Keys, r: Keys) -> None:
    k.record("milestones", TAKEN, _milestones(k, r, k.value("milestones", "numbers", [])))


def _step(k: Keys, r: Keys) -> None:
    every = k.value("step_size", "positive", 1)
    if r.out.epochs is None and "max_steps" in r.out.tree:
        k.refuse("step_size", "counts epochs, and therefore needs trainer.max_epoch")
    epochs = r.out.epochs or EPOCHS
    at = [every * n for n in range(1, int(epochs / every) + 1) if every * n < epochs]
    k.record("step_size", REPLACED, _milestones(k, r, at))


def _milestones(k: Keys, r: Keys, at: list[float]) -> str:
    if not at:
        r.set("type", "schedule.name", "constant")
    k.copy("gamma", "schedule.gamma", default=0.1)
    return k.out.put("schedule.milestones", at)


def _cosine(k: Keys, r: Keys) -> None:
    _decay_end(k, "T_max")
    _final_lr(k, "eta_min")
    why = "the cosine starts at the end of the warm-up; in UP the rate jumped there"
    k.value("warmup_iter")
    k.record("warmup_iter", REPLACED, "schedule.warmup_steps", why)


def _cosine_epochs(k: Keys, r: Keys) -> None:
    _cosine(k, r)
    why = "changes at every step; in UP it changed once per epoch"
    r.record("type", REPLACED, "schedule.name=cosine", why)
    if k.value("warm_epoch", "number"):
        k.copy("warm_epoch", "schedule.warmup_epochs")
    else:
        k.ignore("no warm-up of its own", "warm_epoch")


def _simsiam(k: Keys, r: Keys) -> None:
    _cosine_epochs(k, r)
    if r.out.wrapper != "simsiam":
        r.refuse("type", "is for SimSiam's constant predictor; use CosineAnnealingLR")


def _poly(k: Keys, r: Keys) -> None:
    k.copy("power", "schedule.power", default=1.0)
    _final_lr(k, "min_lr")
    _decay_end(k, "max_epoch")
    steps = r.out.tree.get("max_steps", -1)
    k.fixed("max_iter", (-1, steps), "the decay ends with training, or at max_epoch")


def _decay_end(k: Keys, key: str) -> None:
    """The number of epochs that the decay takes, if not all."""
    end, epochs = k.value(key, "positive"), k.out.epochs
    if end is None:
        return
    if end == epochs:
        k.record(key, TAKEN, why="all epochs")
        return
    rises = epochs is not None and end < epochs
    why = "the rate then stays constant; in UP it rose again" if rises else ""
    k.set(key, "schedule.decay_epochs", end, why)


def _final_lr(k: Keys, key: str) -> None:
    """An absolute learning rate, as a fraction of lr."""
    end, out = k.value(key, "number"), k.out
    if end is None or not out.lr:
        return
    peak = out.lr * (out.batch if out.per_image else 1)
    if 0 <= end <= peak:
        final = float(f"{end / peak:.10g}")
        k.set(key, "schedule.final_lr", final, "as a fraction of lr" if end else "")
    else:
        k.refuse(key, f"expected a learning rate from 0 to lr, {peak:g}")


def _one_cycle(k: Keys, r: Keys) -> None:
    """Half a cosine up over pct_start of all epochs, then half a cosine down."""
    out = r.out
    r.record("type", REPLACED, "schedule.name=cosine", "as a warm-up and a decay")
    epochs = k.value("max_epoch", "positive", out.epochs)
    if epochs is None or out.epochs not in (None, epochs):
        k.refuse("max_epoch", "the cycle takes all epochs: write the number of trainer.max_epoch")
    _decay_end(k, "max_epoch")
    if k.copy("max_lr", "optimizer.lr", "positive") is None:
        k.refuse("max_lr", "missing; write the highest learning rate")
    up, down = k.value("div_factor", "positive", 25.0), k.value("final_div_factor", "positive", 1e4)
    part = k.value("pct_start", "number", 0.3)
    if not 0 <= part <= 1:
        k.refuse("pct_start", "expected a fraction of all epochs, from 0 to 1")
    k.set("pct_start", "schedule.warmup_epochs", part * (epochs or EPOCHS))
    k.set("div_factor", "schedule.warmup_start", 1 / up)
    k.set("final_div_factor", "schedule.final_lr", 1 / (up * down))
    out.put("optimizer.lr_scaling", "none")
    out.put("schedule.warmup_shape", "cosine")
    ends = [k.value("base_momentum", "number", 0.85), k.value("max_momentum", "number", 0.95)]
    cycles = k.value("cycle_momentum", "flag", True)
    by = out.put("schedule.momentum_cycle", ends) if cycles else ""
    k.record("cycle_momentum", TAKEN, by)
    for key in ("base_momentum", "max_momentum"):
        k.record(key, TAKEN if cycles else UNUSED, by, "" if cycles else "momentum is constant")
    k.read(CYCLE)


# type -> schedule.name, and what reads its kwargs (first argument) beside its own keys (second)
SCHEDULERS: dict[str, tuple[str, Callable[[Keys, Keys], None]]] = {
    "MultiStepLR": ("step", _multi_step),
    "StepLR": ("step", _step),
    "CosineAnnealingLR": ("cosine", _cosine),
    "CosineLREpochScheduler": ("cosine", _cosine_epochs),
    "SimSiamScheduler": ("cosine", _simsiam),
    "polylr": ("polynomial", _poly),
    "OneCycleLR": ("cosine", _one_cycle),
}
