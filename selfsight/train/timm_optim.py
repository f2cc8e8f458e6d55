"""timm's optimizers by name, if a run with them can continue exactly."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from selfsight.blame import words
from selfsight.config import near
from selfsight.errors import UserError

PREFIX = "timm:"
STEPS = 4  # before and after the interruption that is tried


def build_timm(
    name: str, groups: list[dict[str, Any]], lr: float, options: dict[str, Any]
) -> Optimizer:
    """An optimizer of `timm.optim.list_optimizers()`.

    Args:
        name: with the prefix "timm:"; options: further arguments, such as betas.
    Raises: UserError for an unknown name or option, and for an optimizer that keeps state outside
        of its `state_dict`: a run with it would not continue as if it had not stopped.
    """
    check_timm(name, options)
    return _make(name, groups, lr, options)


def _make(name: str, groups: Any, lr: float, options: dict[str, Any]) -> Optimizer:
    from timm.optim import create_optimizer_v2

    try:
        return create_optimizer_v2(groups, name.removeprefix(PREFIX), lr, **options)
    except Exception as error:  # timm's optimizers raise anything
        given = f", optimizer.options={options}" if options else ""
        raise UserError(f"optimizer.name={name}{given}: {words(error)}") from None


def check_timm(name: str, options: dict[str, Any]) -> None:
    """Continue a few steps on a few numbers from a state, and compare. Raises: as `build_timm`."""
    from timm.optim import list_optimizers

    known = [PREFIX + other for other in list_optimizers()]
    if name not in known:
        raise UserError(
            f"optimizer.name={name}: timm has no such optimizer.{near(name, known)} List them with "
            f"timm.optim.list_optimizers()"
        )
    whole, lr = _parameters(), 0.01
    optimizer = _make(name, whole, lr, options)
    try:
        hidden = [_hidden(optimizer) for _ in _steps(optimizer, whole, range(STEPS))]
        saved, values = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in whole]
        list(_steps(optimizer, whole, range(STEPS, 2 * STEPS)))
        other = _parameters()
        with torch.no_grad():
            for parameter, value in zip(other, values, strict=True):
                parameter.copy_(value)
        again = _make(name, other, lr, options)
        again.load_state_dict(saved)
        list(_steps(again, other, range(STEPS, 2 * STEPS)))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"optimizer.name={name}: does not work in a plain step ({words(error)}); choose another"
        ) from None
    same = all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))
    if not same or len(set(hidden)) > 1:
        raise UserError(
            f"optimizer.name={name}: keeps state outside of its state_dict, so that a run could "
            f"not continue exactly; choose another"
        )


def check_rows_of_timm(name: str, options: dict[str, Any]) -> None:
    """Compare a few steps on whole tensors with those on their rows, as two processes have them.

    Raises: UserError for an optimizer that updates a number by others of its tensor.
    """
    whole = [*_parameters(), nn.Parameter(torch.linspace(-1, 1, 96 * 64).view(96, 64))]
    halves = [[nn.Parameter(p.detach().chunk(2)[n].clone()) for p in whole] for n in (0, 1)]
    gradients = [_gradients(whole, step) for step in range(STEPS)]

    def train(parameters: list[nn.Parameter], part: Callable[[torch.Tensor], torch.Tensor]) -> None:
        # with weight decay, without which some rules of whole tensors are not applied
        groups = [{"params": parameters, "weight_decay": 0.1}]
        optimizer = _make(name, groups, 0.01, options)
        for each in gradients:
            for parameter, gradient in zip(parameters, each, strict=True):
                parameter.grad = part(gradient)
            optimizer.step()

    train(whole, lambda gradient: gradient)
    for number, half in enumerate(halves):
        train(half, lambda gradient, n=number: gradient.chunk(2)[n].clone())
    found = [torch.cat(pair) for pair in zip(*halves, strict=True)]
    if not all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(found, whole, strict=True)):
        raise whole_tensors_only(name)


def whole_tensors_only(name: str) -> UserError:
    """What is wrong with an optimizer for tensors that are split over processes."""
    return UserError(
        f"optimizer.name={name}: with shard=true a process has some rows of a tensor, and this "
        f"optimizer updates each number by the whole tensor; choose adamw or sgd, or leave out "
        f"shard"
    )


def _parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 4), (4,), (3, 2, 3, 3))
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def _steps(optimizer: Optimizer, parameters: list[nn.Parameter], steps: range) -> Iterator[int]:
    for step in steps:
        for parameter, gradient in zip(parameters, _gradients(parameters, step), strict=True):
            parameter.grad = gradient
        optimizer.step()
        yield step


def _gradients(parameters: list[nn.Parameter], step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(parameter.shape, generator=generator) for parameter in parameters]


def _hidden(optimizer: Optimizer) -> bytes:
    """What an optimizer holds beside its state and its groups, such as a random generator."""
    known = ("state", "param_groups", "defaults")
    found = {
        key: value
        for key, value in vars(optimizer).items()
        if key not in known and not key.startswith("_optimizer") and not callable(value)
    }
    return pickle.dumps(found)
