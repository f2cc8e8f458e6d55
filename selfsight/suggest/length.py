"""How long to train: the epochs that a budget of minutes pays for. Pure functions."""

import math
from dataclasses import dataclass

from selfsight.suggest.choose import Choice, Setup
from selfsight.suggest.facts import ImageFacts

# (images below this number, epochs): what published recipes train, and more for few images. A few
# thousand images are soon seen, and training on takes seconds.
WANTED = ((5_000, 400), (200_000, 200), (math.inf, 100))
ENOUGH = 20  # epochs: with fewer, a cheaper setup is tried
CHECKS = 5  # times that kNN accuracy is measured while training, if there are labels
CHECKED = 10_000  # images that a check looks at (evaluate.images)
# An embedding is a forward pass of one view; a step is about six of them: two views, and a backward
# pass of twice the forward pass.
CHECK_COST = 1 / 6
WARM_UP = 0.1  # of the training
MOST_WARM_UP = 10.0  # epochs
SAVES = 40  # checkpoints of a training, at most
SAVE_EVERY = 15 * 60  # seconds between two checkpoints, at most


@dataclass(frozen=True)
class Length:
    """How long a setup is trained.

    Attributes:
        max_steps: of a training that ends before its first epoch does; else None.
        wanted: epochs without a budget.
        seconds: that the training will take.
    """

    epochs: int
    max_steps: int | None
    wanted: int
    seconds: float


def wanted_epochs(count: int) -> int:
    """The epochs that so many images are worth, if time does not matter."""
    return next(epochs for below, epochs in WANTED if count < below)


def plan_length(setup: Setup, images: ImageFacts, rate: float, minutes: float) -> Length:
    """As many epochs as fit into the budget, and no more than are wanted.

    Args:
        rate: images a second.
    """
    wanted = wanted_epochs(images.count)
    checks = CHECKS * min(images.count, CHECKED) * CHECK_COST if images.classes else 0
    seen = 60 * minutes * rate
    seen = max(seen - checks, seen / 2)  # half is left, of a set that is hardly seen once
    per_epoch = images.count // setup.batch
    epochs = min(wanted, int(seen / (per_epoch * setup.batch)))
    if epochs:
        return Length(
            epochs, None, wanted, _seconds(epochs * per_epoch * setup.batch, checks, rate)
        )
    steps = max(1, min(per_epoch, int(seen / setup.batch)))
    return Length(1, steps, wanted, _seconds(steps * setup.batch, checks / CHECKS, rate))


def _seconds(images: float, checks: float, rate: float) -> float:
    return (images + checks) / rate


def _minutes(minutes: float) -> str:
    return f"{minutes:g} minute{'s'[: minutes != 1]}"


def length_choices(
    setup: Setup, images: ImageFacts, length: Length, rate: float, minutes: float
) -> list[Choice]:
    """The keys that the length sets."""
    per_epoch = images.count // setup.batch
    part = (length.max_steps or per_epoch) / per_epoch  # of the first epoch
    if length.max_steps:
        why = f"what {_minutes(minutes)} allow, of {per_epoch:,} steps of an epoch"
        found = [Choice("epochs", 1, ""), Choice("max_steps", length.max_steps, why)]
    elif length.epochs < length.wanted:
        why = f"what fits into {_minutes(minutes)}; {length.wanted} would learn more"
        found = [Choice("epochs", length.epochs, why)]
    else:
        why = f"for {images.count:,} images; more of them gain little"
        found = [Choice("epochs", length.epochs, why)]
    if setup.warms_up:
        warm = float(f"{min(MOST_WARM_UP, WARM_UP * length.epochs * part):.2g}")
        found.append(Choice("schedule.warmup_epochs", warm, f"a tenth, at most {MOST_WARM_UP:g}"))
    if images.classes:
        every = max(1, length.epochs // CHECKS)
        often = "at the end" if length.epochs == 1 else f"{length.epochs // every} times"
        why = f"kNN accuracy within the training images, {often}"
        found.append(Choice("evaluate.every_epochs", every, why))
    epoch_seconds = images.count / rate
    if length.epochs > SAVES:
        why = f"epochs between two checkpoints, each of {epoch_seconds:.2g} seconds"
        found.append(Choice("checkpoint.every_epochs", math.ceil(length.epochs / SAVES), why))
    elif epoch_seconds > 2 * SAVE_EVERY:
        steps = max(1, int(SAVE_EVERY * rate / setup.batch))
        why = f"steps of about {SAVE_EVERY // 60} minutes: an epoch takes longer"
        found.append(Choice("checkpoint.every_steps", steps, why))
    return found
