"""UP's `trainer`: how long, and how the learning rate goes."""

from collections.abc import Callable

from tacit.dialects.report import Reader
from tacit.dialects.up_optim import read_optimizer, tell_lr
from tacit.dialects.up_values import (
    NOTHING,
    REPLACED,
    TAKEN,
    Draft,
    carry,
    choose,
    flag,
    ignore,
    number,
    numbers,
    only,
    positive,
    whole,
)

EPOCHS = 100  # native default
STEPLESS = "in one line, where it moved once an epoch"
SHAPES = {"linear": "linear", "exp": "exponential", "cosine": "cosine"}


def read_trainer(r: Reader, d: Draft) -> None:
    """Epochs, optimizer, scheduler, and when to save."""
    _length(r, d)
    read_optimizer(r.inside("optimizer"), d)
    scheduler = r.inside("lr_scheduler")
    _peak(scheduler, d)
    tell_lr(r, d)
    kind = choose(scheduler, "type", SCHEDULERS, "scheduler")
    inner = scheduler.inside("kwargs")
    if kind is None:
        ignore(scheduler, "of a scheduler that is refused", "kwargs")
    else:
        SCHEDULERS[kind](inner, d, scheduler)
    if kind == "OneCycleLR":
        r.inside("optimizer").inside("kwargs").tell("lr", NOTHING, why="max_lr is the rate")
    else:
        _warmup(scheduler, d)
    _saving(r, d)
    measured = "pretraining measures on training images, see evaluate.every_epochs"
    once = measured if d.pretrains else "the test images are classified once, at the end"
    ignore(r, once, "test_freq", "test_start", "is_eval")


def _length(r: Reader, d: Draft) -> None:
    epochs, steps = positive(r, "max_epoch"), positive(r, "max_iter")
    if steps is not None:
        d.put("epochs", int(steps))  # an epoch is a step at least
        by, d.epochs = d.put("max_steps", int(steps)), None
        r.tell("max_iter", TAKEN, by)
        r.tell("max_epoch", NOTHING, why="max_iter counts")
    elif epochs is not None and epochs != int(epochs):
        r.refuse("max_epoch", "expected a whole number")
    elif epochs is not None:
        d.epochs = int(epochs)
        r.tell("max_epoch", TAKEN, d.put("epochs", int(epochs)))


def _saving(r: Reader, d: Draft) -> None:
    every = whole(r, "save_freq", 1) or 1
    latest = flag(r, "only_save_latest", False)
    if latest:
        d.put("checkpoint.every_epochs", 1)
        r.tell("only_save_latest", TAKEN, d.put("checkpoint.keep", 1), "saved after each epoch")
        r.tell("save_freq", NOTHING, why="only_save_latest saves after each epoch")
    else:
        r.tell("save_freq", TAKEN, d.put("checkpoint.every_epochs", every))
        keep = d.put("checkpoint.keep", -(-(d.epochs or EPOCHS) // every) + 1)
        r.tell("only_save_latest", TAKEN, keep, "all are kept")
    whole(r, "save_start")
    r.tell("save_start", NOTHING, why="saved from the first epoch on")


# The rate -----------------------------------------------------------------------------------------


def _peak(r: Reader, d: Draft) -> None:
    """`warmup_register_type`: whether lr is that of one image."""
    key = "warmup_register_type"
    kind = choose(r, key, ("no_scale_lr", "base"), key, "base")
    d.per_image = kind == "base"
    why = "lr is absolute" if kind == "no_scale_lr" else "lr is that of one image"
    by = f"optimizer.lr_scaling={'linear' if d.per_image else 'none'}"
    if kind:
        r.tell(key, TAKEN, by, why)
    only(r, "lr_register_type", ("base",), "the one way to build it", "only base is here")


def _batch(d: Draft) -> int:
    return d.tree.get("batch_size", 256)


def _warmup(r: Reader, d: Draft) -> None:
    """Iterations or epochs, of which the longer counts, there as here."""
    steps = whole(r, "warmup_iter")
    if steps:
        r.tell("warmup_iter", TAKEN, d.put("schedule.warmup_steps", steps))
    else:
        r.tell("warmup_iter", NOTHING, why="none")
    epochs = number(r, "warmup_epochs", 0)
    epochs = max(epochs, d.tree.get("schedule", {}).get("warmup_epochs", 0))
    if epochs:
        r.tell("warmup_epochs", TAKEN, d.put("schedule.warmup_epochs", epochs))
    else:
        r.tell("warmup_epochs", NOTHING, why="none")
    shape = choose(r, "warmup_type", SHAPES, "warmup_type", "exp")
    ratio = number(r, "warmup_ratio", -1)
    if not steps and not epochs:
        for key in ("warmup_type", "warmup_ratio"):
            r.tell(key, NOTHING, why="there is no warm-up")
        return
    start = ratio if ratio >= 0 else (1 / _batch(d) if d.per_image else 1.0)
    if shape == "exp" and not start:
        r.refuse("warmup_ratio", "an exponential warm-up begins above 0; use warmup_type: linear")
    if start > 1:
        r.refuse("warmup_ratio", "a warm-up begins at a fraction of lr, 1 at most")
    by = d.put("schedule.warmup_start", start)
    r.tell("warmup_ratio", TAKEN, by, "" if ratio >= 0 else "where the file names none")
    if shape:
        r.tell("warmup_type", TAKEN, d.put("schedule.warmup_shape", SHAPES[shape]))


def _multi_step(k: Reader, d: Draft, r: Reader) -> None:
    at = numbers(k, "milestones", [])
    _steps(k, d, r, at)
    k.tell("milestones", TAKEN, f"schedule.milestones={at}")


def _step(k: Reader, d: Draft, r: Reader) -> None:
    every = positive(k, "step_size", 1)
    if d.epochs is None and "max_steps" in d.tree:
        k.refuse("step_size", "needs max_epoch, since it counts epochs")
    epochs = d.epochs or EPOCHS
    _steps(k, d, r, [every * n for n in range(1, int(epochs / every) + 1) if every * n < epochs])
    k.tell("step_size", REPLACED, f"schedule.milestones={d.tree['schedule'].get('milestones')}")


def _steps(k: Reader, d: Draft, r: Reader, at: list[float]) -> None:
    r.tell("type", TAKEN, d.put("schedule.name", "step" if at else "constant"))
    d.put("schedule.milestones", at)
    carry(k, d, "gamma", "schedule.gamma", number, 0.1)


def _cosine(k: Reader, d: Draft, r: Reader) -> None:
    r.tell("type", TAKEN, d.put("schedule.name", "cosine"))
    _until(k, d, "T_max")
    _end(k, d, "eta_min")
    why = "the cosine begins where the warm-up ends; theirs jumped there"
    k.take("warmup_iter")
    k.tell("warmup_iter", REPLACED, "schedule.warmup_steps", why)


def _cosine_epochs(k: Reader, d: Draft, r: Reader) -> None:
    _cosine(k, d, r)
    r.tell("type", REPLACED, "schedule.name=cosine", STEPLESS)
    warm = number(k, "warm_epoch")
    if warm:
        k.tell("warm_epoch", TAKEN, d.put("schedule.warmup_epochs", warm))
    else:
        k.tell("warm_epoch", NOTHING, why="no warm-up of its own")


def _simsiam(k: Reader, d: Draft, r: Reader) -> None:
    _cosine_epochs(k, d, r)
    name = d.tree.get("method", {}).get("name")
    if name != "simsiam":
        r.refuse("type", "is for SimSiam's constant predictor; use CosineAnnealingLR")
    why = f"{STEPLESS}; the predictor's rate is constant"
    r.tell("type", REPLACED, "schedule.name=cosine", why)


def _poly(k: Reader, d: Draft, r: Reader) -> None:
    r.tell("type", TAKEN, d.put("schedule.name", "polynomial"))
    carry(k, d, "power", "schedule.power", positive, 1.0)
    _end(k, d, "min_lr")
    _until(k, d, "max_epoch")
    only(k, "max_iter", (-1, d.tree.get("max_steps", -1)), "all steps", "give max_epoch here")


def _until(k: Reader, d: Draft, key: str) -> None:
    """The epochs that the decay takes, where they are not all."""
    end = positive(k, key)
    if end is None:
        return
    if end == d.epochs:
        k.tell(key, TAKEN, why="all epochs")
        return
    by = d.put("schedule.decay_epochs", end)
    rises = d.epochs is not None and end < d.epochs
    why = "the rate then stays, where theirs rose again" if rises else ""
    k.tell(key, REPLACED if rises else TAKEN, by, why)


def _end(k: Reader, d: Draft, key: str) -> None:
    """An absolute rate as a fraction of lr."""
    end = number(k, key)
    if end is None or not d.lr:
        return
    peak = d.lr * (_batch(d) if d.per_image else 1)
    if not 0 <= end <= peak:
        k.refuse(key, f"expected a rate from 0 to lr, {peak:g}")
        return
    by = d.put("schedule.final_lr", float(f"{end / peak:.10g}"))
    k.tell(key, TAKEN if not end else REPLACED, by, "" if not end else "as a fraction of lr")


def _one_cycle(k: Reader, d: Draft, r: Reader) -> None:
    """Half a cosine up over pct_start of all epochs, and half a cosine down."""
    r.tell("type", REPLACED, d.put("schedule.name", "cosine"), "as a warm-up and a decay")
    epochs = _only_all(k, d)
    part, up = number(k, "pct_start", 0.3), positive(k, "div_factor", 25.0)
    down = positive(k, "final_div_factor", 1e4)
    k.tell("pct_start", TAKEN, d.put("schedule.warmup_epochs", part * epochs))
    k.tell("div_factor", TAKEN, d.put("schedule.warmup_start", 1 / up))
    k.tell("final_div_factor", TAKEN, d.put("schedule.final_lr", 1 / (up * down)))
    d.put("schedule.warmup_shape", "cosine")
    most = positive(k, "max_lr")
    if most is not None:
        d.put("optimizer.lr_scaling", "none")
        k.tell("max_lr", TAKEN, d.put("optimizer.lr", most))
    low, high = number(k, "base_momentum", 0.85), number(k, "max_momentum", 0.95)
    by = ""
    if flag(k, "cycle_momentum", True):
        by = d.put("schedule.momentum_cycle", [low, high])
    k.tell("cycle_momentum", TAKEN, by)
    for key in ("base_momentum", "max_momentum"):
        k.tell(key, TAKEN if by else NOTHING, by, "" if by else "momentum does not change")
    only(k, "anneal_strategy", ("cos",), "half a cosine", "only cos is here")
    only(k, "three_phase", (False,), "two phases", "only two phases are here")
    why = "the cycle has its own warm-up"
    ignore(r, why, "warmup_iter", "warmup_epochs", "warmup_type", "warmup_ratio")


def _only_all(k: Reader, d: Draft) -> float:
    epochs = positive(k, "max_epoch", d.epochs or EPOCHS)
    if d.epochs not in (None, epochs):
        k.refuse("max_epoch", f"the cycle takes all epochs, {d.epochs}")
    k.tell("max_epoch", TAKEN, why="all epochs")
    return epochs


# type -> what reads its kwargs; the scheduler's own keys are in the third argument
SCHEDULERS: dict[str, Callable[[Reader, Draft, Reader], None]] = {
    "MultiStepLR": _multi_step,
    "StepLR": _step,
    "CosineAnnealingLR": _cosine,
    "CosineLREpochScheduler": _cosine_epochs,
    "SimSiamScheduler": _simsiam,
    "polylr": _poly,
    "OneCycleLR": _one_cycle,
}
