"""Continuing from a checkpoint of the same run, or of another run whose images, batch size or
optimizer may differ."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from selfsight import config as layers
from selfsight import distributed
from selfsight.encoders.artifact import DESCRIPTION
from selfsight.encoders.description import read_description
from selfsight.errors import UserError
from selfsight.logging.log import console
from selfsight.train.checkpoint import load_from
from selfsight.train.loader import ViewLoader

State = dict[str, Any]


def place_of(loader: ViewLoader) -> State:
    """What a checkpoint keeps, beside its step, to be found again at another batch size."""
    return {"images": len(loader.images), "batch_size": loader.batch_size}


def load_other(
    where: str, loader: ViewLoader, steps: int, device: torch.device
) -> tuple[int, State]:
    """The state of another run's checkpoint, and the step of this run at which it goes on.

    Args:
        where: the run's folder, or the checkpoint; steps: of this run.
    Raises: UserError if that is no checkpoint, or if nothing is left to train.
    """
    step, state = load_from(where, device)
    here = step_here(where, step, state, loader)
    if here >= steps:
        raise UserError(
            f"resume={where}: that run is already at step {here} and this one ends at {steps}: "
            f"raise epochs (or max_steps)"
        )
    return here, state


@contextlib.contextmanager
def fitting(where: str) -> Iterator[None]:
    """Errors of loading a state that is of another network, as one line."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"resume={where}: its state does not fit this method, encoder or optimizer ({reason}); "
            f"use the same ones, or start from the encoder alone with weights="
        ) from None


def step_here(where: str, step: int, state: State, loader: ViewLoader) -> int:
    """The step of this run at the position of another run's checkpoint.

    The position is the epoch, and in it the part of the images that was seen. In an unfinished
    epoch it is rounded down to a whole step: a few images come again, and none is left out.
    Args:
        where: the run's folder, or the checkpoint.
        step: of that run.
    """
    images, batch_size = _place(Path(where), state, loader)
    epoch, rest = divmod(step, max(1, images // batch_size))
    seen = rest * batch_size * len(loader.images) // images  # of this run's images
    per_epoch = loader.steps_per_epoch
    return epoch * per_epoch + min(per_epoch, seen // loader.batch_size)


def _place(path: Path, state: State, loader: ViewLoader) -> tuple[int, int]:
    """Images and batch size of the run that a checkpoint is of. Version 0.1.0 did not write them
    into the checkpoint: its run's other files hold them."""
    here = place_of(loader)
    if "place" in state:
        return state["place"]["images"], state["place"]["batch_size"]
    folder = path if path.is_dir() else path.absolute().parent.parent
    if (folder / "config.yaml").is_file():
        tree = layers.read_yaml(folder / "config.yaml")
        here["batch_size"] = tree.get("batch_size", here["batch_size"])
    if (folder / DESCRIPTION).is_file():
        about = read_description(folder / DESCRIPTION)
        here["images"] = about.get("pretrained_on", {}).get("images") or here["images"]
    return here["images"], here["batch_size"]


def load_optimizer(optimizer: Optimizer, saved: State) -> None:
    """Load what the optimizer remembers of each parameter. Its settings stay those of this run's
    configuration: momentum, betas, weight decay and their like are no state.

    Args:
        saved: the `state_dict` of the checkpoint's optimizer. If that is of another kind, this one
            starts anew, and a line says so.
    Raises: UserError if its parameters are grouped in another way.
    """
    own = optimizer.state_dict()["param_groups"]
    before, now = (kind(groups[0]) for groups in (saved["param_groups"], own))
    if before != now:
        if distributed.rank() == 0:
            console.print(
                f"optimizer.name={now}: the checkpoint was made with {before}; {now} starts with "
                f"fresh averages of the gradients, and the network goes on",
                soft_wrap=True,
            )
        return
    if [len(g["params"]) for g in saved["param_groups"]] != [len(g["params"]) for g in own]:
        raise UserError("the optimizer updates other parameters")
    # A key that only the checkpoint has is state, such as the count of steps of timm's LAMB.
    groups = [{**a, **b} for a, b in zip(saved["param_groups"], own, strict=True)]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # torch's fused steps read memory in order: a layout of another device is none of
                # this one, and would give each weight the average of another
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def kind(group: State) -> str:
    """The optimizer that a group of parameters is of, as `optimizer.name` calls it."""
    if "kind" in group:
        return group["kind"]
    adam, adapts = "betas" in group, "trust_clip" in group
    return {(0, 0): "sgd", (1, 0): "adamw", (0, 1): "lars", (1, 1): "lamb"}[adam, adapts]
