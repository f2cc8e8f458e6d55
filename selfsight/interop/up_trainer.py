"""UP's `trainer`: how long, and how the learning rate goes."""

from collections.abc import Callable

from selfsight.interop.up_optim import read_optimizer, tell_lr
from selfsight.interop.up_values import NOTHING, REPLACED, TAKEN, Draft, Keys

EPOCHS = 100  # native default
STEPLESS = "in one line, where it moved once an epoch"
SHAPES = {"linear": "linear", "exp": "exponential", "cosine": "cosine"}
WARMUP = ("warmup_iter", "warmup_epochs", "warmup_type", "warmup_ratio")


def read_trainer(r: Keys) -> None:
    """Epochs, optimizer, scheduler, and when to save."""
    _length(r)
    optimizer, scheduler = r.inside("optimizer"), r.inside("lr_scheduler")
    read_optimizer(optimizer)
    key = "warmup_register_type"
    register = scheduler.choose(key, ("no_scale_lr", "base"), key, "base")
    r.d.per_image = register == "base"
    tell_lr(optimizer)
    if scheduler:
        _scheduler(scheduler, optimizer)
    scaling = f"optimizer.lr_scaling={r.d.tree.get('optimizer', {}).get('lr_scaling')}"
    scheduler.tell(key, TAKEN, scaling, "whether lr is absolute or that of one image")
    _saving(r)
    measured = "pretraining measures on training images, see evaluate.every_epochs"
    once = measured if r.d.pretrains else "the test images are classified once, at the end"
    r.ignore(once, "test_freq", "test_start", "is_eval")


def _length(r: Keys) -> None:
    epochs, steps = r.whole("max_epoch"), r.whole("max_iter")
    if steps is not None:
        r.d.put("epochs", int(steps))  # an epoch is a step at least
        r.tell("max_iter", TAKEN, r.d.put("max_steps", int(steps)))
        r.tell("max_epoch", NOTHING, why="max_iter counts")
    elif epochs is not None:
        r.d.epochs = int(epochs)
        r.tell("max_epoch", TAKEN, r.d.put("epochs", int(epochs)))


def _saving(r: Keys) -> None:
    every = r.whole("save_freq", 1) or 1
    if r.flag("only_save_latest", False):
        r.d.put("checkpoint.every_epochs", 1)
        r.tell("only_save_latest", TAKEN, r.d.put("checkpoint.keep", 1), "saved after each epoch")
        r.tell("save_freq", NOTHING, why="only_save_latest saves after each epoch")
    else:
        r.tell("save_freq", TAKEN, r.d.put("checkpoint.every_epochs", every))
        keep = -(-r.d.tree.get("epochs", EPOCHS) // every) + 1
        r.tell("only_save_latest", TAKEN, r.d.put("checkpoint.keep", keep), "all are kept")
    r.whole("save_start")
    r.tell("save_start", NOTHING, why="saved from the first epoch on")


# The rate -----------------------------------------------------------------------------------------


def _scheduler(r: Keys, optimizer: Keys) -> None:
    r.only("lr_register_type", ("base",), "the one way to build it", "only base is here")
    kind = r.kind(SCHEDULERS, "scheduler")
    if kind is None:
        return
    name, read = SCHEDULERS[kind]
    r.tell("type", TAKEN, r.d.put("schedule.name", name))
    read(r.inside("kwargs"), r)
    if kind == "OneCycleLR":
        r.ignore("the cycle has its own warm-up", *WARMUP)
        optimizer.inside("kwargs").tell("lr", NOTHING, why="max_lr is the rate")
    else:
        _warmup(r)


def _batch(d: Draft) -> int:
    return d.tree.get("batch_size") or 256


def _warmup(r: Keys) -> None:
    """Iterations or epochs, of which the longer counts, there as here."""
    d = r.d
    steps, epochs = r.whole("warmup_iter", 0), r.number("warmup_epochs", 0)
    epochs = max(epochs, d.tree["schedule"].get("warmup_epochs", 0)) if epochs >= 0 else epochs
    for key, native, found in (
        ("warmup_iter", "schedule.warmup_steps", steps),
        ("warmup_epochs", "schedule.warmup_epochs", epochs),
    ):
        if found:
            r.tell(key, TAKEN, d.put(native, found))
        else:
            r.tell(key, NOTHING, why="none")
    shape = r.choose("warmup_type", SHAPES, "warmup_type", "exp")
    ratio = r.number("warmup_ratio", -1)
    if not steps and not epochs:
        r.ignore("there is no warm-up", "warmup_type", "warmup_ratio")
        return
    start = ratio if ratio >= 0 else (1 / _batch(d) if d.per_image else 1.0)
    if shape == "exp" and not start:
        r.refuse("warmup_ratio", "an exponential warm-up begins above 0; use warmup_type: linear")
    r.tell("warmup_ratio", TAKEN, d.put("schedule.warmup_start", start))
    if shape:
        r.tell("warmup_type", TAKEN, d.put("schedule.warmup_shape", SHAPES[shape]))


def _multi_step(k: Keys, r: Keys) -> None:
    k.tell("milestones", TAKEN, _steps(k, r, k.numbers("milestones", [])))


def _step(k: Keys, r: Keys) -> None:
    every = k.positive("step_size", 1)
    if r.d.epochs is None and "max_steps" in r.d.tree:
        k.refuse("step_size", "needs max_epoch, since it counts epochs")
    epochs = r.d.epochs or EPOCHS
    at = [every * n for n in range(1, int(epochs / every) + 1) if every * n < epochs]
    k.tell("step_size", REPLACED, _steps(k, r, at))


def _steps(k: Keys, r: Keys, at: list[float]) -> str:
    if not at:
        r.tell("type", TAKEN, k.d.put("schedule.name", "constant"))
    k.carry("gamma", "schedule.gamma", default=0.1)
    return k.d.put("schedule.milestones", at)


def _cosine(k: Keys, r: Keys) -> None:
    _until(k, "T_max")
    _end(k, "eta_min")
    why = "the cosine begins where the warm-up ends; theirs jumped there"
    k.take("warmup_iter")
    k.tell("warmup_iter", REPLACED, "schedule.warmup_steps", why)


def _cosine_epochs(k: Keys, r: Keys) -> None:
    _cosine(k, r)
    r.tell("type", REPLACED, "schedule.name=cosine", STEPLESS)
    if k.number("warm_epoch"):
        k.carry("warm_epoch", "schedule.warmup_epochs")
    else:
        k.tell("warm_epoch", NOTHING, why="no warm-up of its own")


def _simsiam(k: Keys, r: Keys) -> None:
    _cosine_epochs(k, r)
    if r.d.wrapper != "simsiam":
        r.refuse("type", "is for SimSiam's constant predictor; use CosineAnnealingLR")


def _poly(k: Keys, r: Keys) -> None:
    k.carry("power", "schedule.power", default=1.0)
    _end(k, "min_lr")
    _until(k, "max_epoch")
    steps = r.d.tree.get("max_steps", -1)
    k.only("max_iter", (-1, steps), "all steps", "give max_epoch here")


def _until(k: Keys, key: str) -> None:
    """The epochs that the decay takes, where they are not all."""
    end, epochs = k.positive(key), k.d.epochs
    if end is None:
        return
    if end == epochs:
        k.tell(key, TAKEN, why="all epochs")
        return
    rises = epochs is not None and end < epochs
    why = "the rate then stays, where theirs rose again" if rises else ""
    k.tell(key, REPLACED if rises else TAKEN, k.d.put("schedule.decay_epochs", end), why)


def _end(k: Keys, key: str) -> None:
    """An absolute rate as a fraction of lr."""
    end, d = k.number(key), k.d
    if end is None or not d.lr:
        return
    peak = d.lr * (_batch(d) if d.per_image else 1)
    if not 0 <= end <= peak:
        k.refuse(key, f"expected a rate from 0 to lr, {peak:g}")
        return
    by = d.put("schedule.final_lr", float(f"{end / peak:.10g}"))
    k.tell(key, REPLACED if end else TAKEN, by, "as a fraction of lr" if end else "")


def _one_cycle(k: Keys, r: Keys) -> None:
    """Half a cosine up over pct_start of all epochs, and half a cosine down."""
    d = r.d
    r.tell("type", REPLACED, "schedule.name=cosine", "as a warm-up and a decay")
    epochs = k.positive("max_epoch", d.epochs)
    if epochs is None or d.epochs not in (None, epochs):
        k.refuse("max_epoch", "the cycle takes all epochs: give it trainer.max_epoch")
    _until(k, "max_epoch")
    if k.positive("max_lr") is None:
        k.refuse("max_lr", "name the highest rate")
    k.carry("max_lr", "optimizer.lr")
    d.put("optimizer.lr_scaling", "none")
    up, down = k.positive("div_factor", 25.0), k.positive("final_div_factor", 1e4)
    part = k.number("pct_start", 0.3)
    if not 0 <= part <= 1:
        k.refuse("pct_start", "expected a part of all epochs, from 0 to 1")
    k.tell("pct_start", TAKEN, d.put("schedule.warmup_epochs", part * (epochs or EPOCHS)))
    k.tell("div_factor", TAKEN, d.put("schedule.warmup_start", 1 / up))
    k.tell("final_div_factor", TAKEN, d.put("schedule.final_lr", 1 / (up * down)))
    d.put("schedule.warmup_shape", "cosine")
    ends = [k.number("base_momentum", 0.85), k.number("max_momentum", 0.95)]
    by, why = "", "momentum does not change"
    if k.flag("cycle_momentum", True):
        by, why = d.put("schedule.momentum_cycle", ends), ""
    k.tell("cycle_momentum", TAKEN, by)
    for key in ("base_momentum", "max_momentum"):
        k.tell(key, NOTHING if why else TAKEN, by, why)
    k.only("anneal_strategy", ("cos",), "half a cosine", "only cos is here")
    k.only("three_phase", (False,), "two phases", "only two phases are here")


# type -> ours, and what reads its kwargs; the scheduler's own keys are in the second argument
SCHEDULERS: dict[str, tuple[str, Callable[[Keys, Keys], None]]] = {
    "MultiStepLR": ("step", _multi_step),
    "StepLR": ("step", _step),
    "CosineAnnealingLR": ("cosine", _cosine),
    "CosineLREpochScheduler": ("cosine", _cosine_epochs),
    "SimSiamScheduler": ("cosine", _simsiam),
    "polylr": ("polynomial", _poly),
    "OneCycleLR": ("cosine", _one_cycle),
}
