"""`selfsight init`: look, choose, measure, write."""

import math
import os
import re
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from selfsight import own
from selfsight.data.config import PATHS, DataConfig, several
from selfsight.data.source import Watch
from selfsight.data.sources.open import relocated
from selfsight.errors import UserError, printable
from selfsight.files import write_text
from selfsight.logging.log import say
from selfsight.pretraining.config import RunConfig, compose
from selfsight.pretraining.profile import profile
from selfsight.suggest import advice
from selfsight.suggest.choose import Choice, Setup, setups
from selfsight.suggest.facts import ImageFacts, Machine, Pace
from selfsight.suggest.length import ENOUGH, Length, length_choices, plan_length
from selfsight.suggest.look import look_at_images, look_at_machine
from selfsight.suggest.recipe import argument, recipe_text

STEPS = 20  # that are measured, the first half of them for the rate
LONGEST = 60.0  # seconds for them, of each setup
SMALLEST = 8  # images of a batch that is halved since it does not fit into memory

Measure = Callable[[RunConfig], Pace]


@dataclass(frozen=True)
class _Asked:
    """What the user said: keys `data.*`, minutes, the device; and what finds a rate."""

    own: dict[str, Any]
    minutes: float
    device: str
    measure: Measure

    def keys(self, setup: Setup) -> list[Choice]:
        """The user's keys, and the choices that they leave open."""
        free = [c for c in setup.choices if c.key.removeprefix("data.") not in self.own]
        device = [Choice("device", self.device, "as asked for")] if self.device != "auto" else []
        return [*(Choice(f"data.{k}", v, "") for k, v in self.own.items()), *free, *device]


@dataclass(frozen=True)
class Suggestion:
    """What was written.

    Attributes:
        file: of the recipe; run: the folder that a run of it has by default, named after the file.
        code: an argument for the user's own code, which a recipe alone must not run; or "".
        warnings: what to know before training, a sentence each.
    """

    file: Path
    run: str
    code: str
    images: ImageFacts
    setup: Setup
    length: Length
    pace: Pace
    warnings: list[str]


def pace_of(config: RunConfig) -> Pace:
    """Train STEPS steps that count, fewer if they take LONGEST, and keep nothing."""
    # without an end, and without what is not done in every step
    free = {"epochs": 10**6, "max_steps": None, "save_best": False}
    free["log_every"] = 10**6  # so few steps are not judged: a collapse would be reported
    free["evaluate"] = config.evaluate.model_copy(update={"every_epochs": 0})
    never = {"every_epochs": 0, "every_steps": 0}
    free["checkpoint"] = config.checkpoint.model_copy(update=never)
    found = profile(config.model_copy(update=free), LONGEST, STEPS)
    waiting = found.seconds["waiting for data"] / sum(found.seconds.values())
    return Pace(found.rate, found.undisturbed, found.slowest, waiting)


def suggest(
    data: DataConfig,
    output: Path | None = None,
    minutes: float = 30.0,
    device: str = "auto",
    watch: Watch = lambda *_: None,
    measure: Measure = pace_of,
) -> Suggestion:
    """Write a recipe for these images and this machine, after training a few steps of it.

    Args:
        data: the keys `data.*` that the user gave.
        output: the file (default: recipes/NAME.yaml, NAME after the images).
        minutes: that the training may take.
        measure: what finds the rate of a configuration.
    Raises: UserError if there are no images, or if the file exists.
    """
    if not 0 < minutes < math.inf:
        raise UserError(f"--minutes={minutes:g}: give a number above 0")
    name = name_of(data)
    file = output or Path("recipes") / f"{name}.yaml"
    if os.path.lexists(file):
        raise UserError(
            f"'{file}' exists, and may hold what you changed: choose another file with -o, or "
            f"remove it"
        )
    machine = look_at_machine(device, Path())
    images = look_at_images(data, watch)
    asked = _Asked(_own_keys(data), minutes, device, measure)
    setup, pace = _fastest_enough(images, machine, asked)
    length = plan_length(setup, images, pace.rate, minutes)
    warned = advice.warnings(images, machine, setup, pace)
    code = argument("data.source", data.source) if own.is_code(data.source) else ""
    made = Suggestion(file, f"runs/{file.stem}", code, images, setup, length, pace, warned)
    text = _text(made, machine, asked, name)
    _validated(text)
    write_text(file, text)
    return made


def name_of(data: DataConfig) -> str:
    """A name for the recipe: of the last part of the first path, or of the source."""
    paths = several(data.path)
    last = Path(os.path.abspath(paths[0])).name if paths else data.source.rpartition("/")[2]
    stem = last.partition(".")[0] or last
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "images"


def _own_keys(data: DataConfig) -> dict[str, Any]:
    """The keys that the user gave, with paths that are right from any folder."""
    given = data.model_dump(mode="json", exclude_unset=True)
    if data.path is None:
        given.setdefault("source", data.source)
    first = {key: given[key] for key in ("source", *PATHS) if key in given}
    return relocated(first | given, os.path.abspath)


def _fastest_enough(images: ImageFacts, machine: Machine, asked: _Asked) -> tuple[Setup, Pace]:
    """The first setup that trains ENOUGH epochs in the time, or all that are wanted; else the
    last, which is the cheapest."""
    for place in range(len(setups(images, machine))):
        setup, pace = _measured(images, machine, place, asked)
        length = plan_length(setup, images, pace.rate, asked.minutes)
        if length.max_steps is None and length.epochs >= min(ENOUGH, length.wanted):
            break
    return setup, pace


def _measured(
    images: ImageFacts, machine: Machine, place: int, asked: _Asked
) -> tuple[Setup, Pace]:
    """A setup and its pace, with a batch that fits into the memory of a GPU."""
    largest = None
    while True:
        setup = setups(images, machine, largest)[place]
        config = _validated(recipe_text("", [], (setup.base, ""), asked.keys(setup), []))
        say(f"Measuring {_words(setup)}, batches of {setup.batch} ...")
        try:
            return setup, asked.measure(config)
        except torch.OutOfMemoryError:
            if setup.batch <= SMALLEST:
                raise UserError(
                    f"a batch of {setup.batch} images does not fit into the memory of "
                    f"{machine.name}; free some, or plan for another with --device"
                ) from None
        largest = setup.batch // 2


def _words(setup: Setup) -> str:
    return f"{setup.method}, {setup.encoder}, views of {setup.side} pixels"


def _validated(text: str) -> RunConfig:
    """The configuration that a recipe of this text describes."""
    with tempfile.TemporaryDirectory(prefix="selfsight-init-") as folder:
        file = Path(folder) / "recipe.yaml"
        write_text(file, text)
        return compose(str(file)).config


def _text(made: Suggestion, machine: Machine, asked: _Asked, name: str) -> str:
    images, setup, length, pace = made.images, made.setup, made.length, made.pace
    title = f"{setup.method} on {name}: {images.count:,} images, {setup.encoder}, about "
    title += f"{_minutes(length.seconds)} on the machine that it was planned on"
    keys = asked.keys(setup)
    keys += length_choices(setup, images, length, pace.rate, asked.minutes)
    base = setup.base, f"{setup.why}; `selfsight show FILE` prints all keys"
    about = [*advice.describe(images, machine, pace), *(f"- {line}" for line in made.warnings)]
    return recipe_text(title, about, base, keys, _other_plans(made, machine, asked.own))


def _other_plans(made: Suggestion, machine: Machine, keys: dict[str, Any]) -> list[str]:
    file = f"{shlex.quote(str(made.file))} {made.code}".strip()
    lines = advice.longer(made.images, machine, made.setup, made.length, made.pace, file)
    data = [argument(f"data.{key}", value) for key, value in keys.items()]
    found = advice.foundation(made.images, made.setup, data)
    if found is not None:
        about, words = found
        words = [word or file for word in words]
        lines += [about, f"  selfsight pretrain {' '.join(words)} --run {made.run}-pretrained"]
    return lines


def next_commands(made: Suggestion) -> list[str]:
    """What to type to train, to measure and to look at the result."""
    run, code = shlex.quote(made.run), f" {made.code}" if made.code else ""
    lines = [f"selfsight pretrain {shlex.quote(str(made.file))}{code} --run {run}"]
    if made.images.classes:
        lines.append(f"selfsight knn {run}{code}")
    return [*lines, f"selfsight report {run}"]


def summary(made: Suggestion) -> list[str]:
    """What to print: the plan in a line, then a line for each warning."""
    length = made.length
    how_long = (
        f"{length.epochs} epochs" if length.max_steps is None else f"{length.max_steps} steps"
    )
    lines = [
        f"Wrote {made.file}: {_words(made.setup)}, batches of {made.setup.batch}, {how_long}, "
        f"about {_minutes(length.seconds)} ({made.pace.rate:.3g} images/s measured)",
        *(f"- {line}" for line in made.warnings),
    ]
    return [printable(line) for line in lines]


def _minutes(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes:,} minute{'s'[: minutes != 1]}"
