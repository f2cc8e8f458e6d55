"""`selfsight init`: look, choose, measure, write."""

import math
import os
import re
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from selfsight.data.config import PATHS, DataConfig, several
from selfsight.data.source import Watch
from selfsight.data.sources.open import relocated
from selfsight.errors import UserError, printable
from selfsight.files import write_text
from selfsight.pretraining.config import RunConfig, compose
from selfsight.pretraining.profile import profile
from selfsight.suggest import advice
from selfsight.suggest.choose import Choice, Setup, setups
from selfsight.suggest.facts import ImageFacts, Machine, Pace
from selfsight.suggest.length import ENOUGH, Length, length_choices, plan_length
from selfsight.suggest.look import look_at_images, look_at_machine
from selfsight.suggest.recipe import argument, recipe_text
from selfsight.train.log import say

STEPS = 10  # that are measured
LONGEST = 60.0  # seconds for them, of each setup
SMALLER = 5  # times that the batch is halved, if it does not fit into memory

Measure = Callable[[RunConfig], Pace]


@dataclass(frozen=True)
class Suggestion:
    """What was written.

    Attributes:
        file: of the recipe; run: the folder that a run of it has by default.
        warnings: what to know before training, a sentence each.
    """

    file: Path
    run: str
    images: ImageFacts
    setup: Setup
    length: Length
    pace: Pace
    warnings: list[str]


def pace_of(config: RunConfig) -> Pace:
    """Train STEPS steps that count, and keep nothing."""
    # without an end, and without what is not done in every step
    free = {"epochs": 10**6, "max_steps": None, "save_best": False}
    free["evaluate"] = config.evaluate.model_copy(update={"every_epochs": 0})
    never = {"every_epochs": 0, "every_steps": 0}
    free["checkpoint"] = config.checkpoint.model_copy(update=never)
    found = profile(config.model_copy(update=free), LONGEST, STEPS)
    waiting = found.seconds["waiting for data"] / sum(found.seconds.values())
    return Pace(found.rate, found.undisturbed + found.steps, found.slowest, waiting)


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
    own = _own_keys(data)
    setup, pace = _fastest_enough(images, machine, minutes, own, device, measure)
    length = plan_length(setup, images, pace.rate, minutes)
    warned = advice.warnings(images, machine, setup, pace)
    made = Suggestion(file, f"runs/{name}", images, setup, length, pace, warned)
    text = _text(made, machine, minutes, own, name, device)
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


def _fastest_enough(
    images: ImageFacts,
    machine: Machine,
    minutes: float,
    own: dict[str, Any],
    device: str,
    measure: Measure,
) -> tuple[Setup, Pace]:
    """The first setup that trains ENOUGH epochs in the time, or all that are wanted; else the one
    that trains the most."""
    for place in range(len(setups(images, machine))):
        setup, pace = _measured(images, machine, place, own, device, measure)
        length = plan_length(setup, images, pace.rate, minutes)
        if length.max_steps is None and length.epochs >= min(ENOUGH, length.wanted):
            break
    return setup, pace


def _measured(
    images: ImageFacts,
    machine: Machine,
    place: int,
    own: dict[str, Any],
    device: str,
    measure: Measure,
) -> tuple[Setup, Pace]:
    """A setup and its pace, with a batch that fits into memory."""
    for attempt in range(SMALLER):
        less = replace(machine, memory=machine.memory / 2**attempt)
        setup = setups(images, less)[place]
        keys = [*_data_choices(own), *_free(setup, own)]
        keys += [Choice("device", device, "")] if device != "auto" else []
        config = _validated(recipe_text("", [], (setup.base, ""), keys, []))
        say(f"Measuring {_words(setup)}, batch {setup.batch} ...")
        try:
            return setup, measure(config)
        except torch.OutOfMemoryError:
            if device == "cpu" or attempt == SMALLER - 1:
                raise
    raise AssertionError("the loop returns or raises")


def _words(setup: Setup) -> str:
    return f"{setup.method}, {setup.encoder}, views of {setup.side} pixels"


def _validated(text: str) -> RunConfig:
    """The configuration that a recipe of this text describes."""
    with tempfile.TemporaryDirectory(prefix="selfsight-init-") as folder:
        file = Path(folder) / "recipe.yaml"
        write_text(file, text)
        return compose(str(file)).config


def _data_choices(own: dict[str, Any]) -> list[Choice]:
    return [Choice(f"data.{key}", value, "") for key, value in own.items()]


def _free(setup: Setup, own: dict[str, Any]) -> list[Choice]:
    """The choices that the user has not made."""
    return [c for c in setup.choices if c.key.removeprefix("data.") not in own]


def _text(
    made: Suggestion,
    machine: Machine,
    minutes: float,
    own: dict[str, Any],
    name: str,
    device: str,
) -> str:
    images, setup, length, pace = made.images, made.setup, made.length, made.pace
    title = f"{setup.method} on {name}: {images.count:,} images, {setup.encoder}, about "
    title += f"{_minutes(length.seconds)} on the machine that it was planned on"
    keys = [*_data_choices(own), *_free(setup, own)]
    keys += [Choice("device", device, "as asked for")] if device != "auto" else []
    keys += length_choices(setup, images, length, pace.rate, minutes)
    base = setup.base, f"{setup.why}; `selfsight show FILE` prints all keys"
    about = [*describe(images, machine, pace), *(f"- {line}" for line in made.warnings)]
    return recipe_text(title, about, base, keys, _other_plans(made, machine, own))


def describe(images: ImageFacts, machine: Machine, pace: Pace) -> list[str]:
    """Sentences about what was found."""
    kind = {1: "gray", 3: "RGB"}.get(images.channels, f"{images.channels}-band")
    bits = "more than 8 bits" if images.deep else "8 bits"
    some = "" if images.looked == images.count else f" (of {images.looked:,} that were looked at)"
    labels = f"{images.classes:,} classes" if images.classes else "no labels"
    cores = f"{machine.cores} core{'s'[: machine.cores != 1]}"
    return [
        f"Written by `selfsight init`. Found: {images.count:,} {kind} images of {bits}, sides of "
        f"{images.smallest} to {images.largest} pixels, median of the shorter one "
        f"{images.shorter}{some}; {labels}; {images.test:,} test images.",
        f"Machine: {machine.name}, {machine.memory / 2**30:.0f} GiB, {cores} for loading, "
        f"{'bf16' if machine.bf16 else 'fp32'}; measured over {pace.steps} steps: "
        f"{pace.rate:.3g} images/s, the slowest part of a step is '{pace.slowest}'.",
    ]


def _other_plans(made: Suggestion, machine: Machine, own: dict[str, Any]) -> list[str]:
    file = shlex.quote(str(made.file))
    lines = advice.longer(made.images, machine, made.setup, made.length, made.pace, file)
    data = [argument(f"data.{key}", value) for key, value in own.items()]
    found = advice.foundation(made.images, made.setup, data)
    if found is not None:
        about, words = found
        words = [word or file for word in words]
        lines += [about, f"  selfsight pretrain {' '.join(words)} --run {made.run}-pretrained"]
    return lines


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
