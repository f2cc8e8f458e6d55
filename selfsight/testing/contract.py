"""The contract of methods, as a test that anyone can run on a method of their own."""

import copy
import math
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from selfsight import blame
from selfsight.batch import Batch, Normalization, SampleKey
from selfsight.methods.method import Method, MethodConfig, Output
from selfsight.random_layers import follow_images
from selfsight.testing.encoders import TinyEncoder, tiny_teacher, tiny_vit
from selfsight.testing.two_processes import in_two_processes
from selfsight.views.make import make_views
from selfsight.views.recipe import ViewGroup, preset

COUNT, SIZE, CLASSES = 16, 16, 4  # images of a batch, their side in pixels, their classes
STEPS = 2  # before and after an interruption
ROUNDING = 1e-5  # of a method in float64 that computes its loss in float32
MEAN, STD = (0.5,) * 3, (0.25,) * 3


class BrokenContract(AssertionError):
    """What a method does not keep, a line each."""


def check_method(
    method: type[Method],
    config: MethodConfig | None = None,
    backbone: Callable[[], nn.Module] | None = None,
) -> None:
    """Test that a method keeps the contract on which the guarantees of a run rest.

    Tested are: a finite loss in fp32 and bf16; features of the encoder's width; gradients in all
    that is trained, and nowhere else; a forward that changes no state; a state that survives a
    round trip, with a run that continues as if it had not stopped; two processes with half of the
    batch each that compute what one computes with all of it, in loss, gradients and state.

    Args:
        config: hyperparameters (default: those of `method.Config`); small ones are faster.
        backbone: makes the encoder (default: a small one, a ViT if `method.needs` says so).
    Raises: BrokenContract, a line for each part that is broken.

    >>> from selfsight.methods import SimCLR
    >>> check_method(SimCLR, SimCLR.Config(hidden_dim=32, output_dim=16))
    """
    case = _Case(method, config, backbone)
    problems = []
    for check in (_finite, _gradients, _pure, _resumes, _ranks):
        try:
            with torch.random.fork_rng(devices=[]):
                problems += [f"{check.__doc__}: {line}" for line in check(case)]
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(where.filename)}:{where.lineno}"
            problems.append(f"{check.__doc__}: {blame.words(error)} ({place})")
            if check is _finite:  # nothing else can work
                break
    if problems:
        name = blame.named(method)
        raise BrokenContract("\n".join(f"{name}: {line}" for line in dict.fromkeys(problems)))


class _Case:
    """A method under test, and batches for it."""

    def __init__(
        self,
        method: type[Method],
        config: MethodConfig | None,
        backbone: Callable[[], nn.Module] | None,
    ) -> None:
        self.method, self.config = method, config
        tokens = {"ViT", "frozen teacher"} & {*method.needs}
        self._backbone = backbone or (tiny_vit if tokens else TinyEncoder)
        groups = [ViewGroup(**group) for group in preset(method.default_views)]
        self.groups = [
            group.model_copy(update={"size": SIZE // 2 if group.count > 4 else SIZE})
            for group in groups
        ]

    def build(self, double: bool = False) -> Method:
        """The method, always with the same weights."""
        torch.manual_seed(0)
        backbone = self._backbone()
        if not hasattr(backbone, "num_features"):
            with torch.no_grad():
                backbone.num_features = backbone(torch.zeros(1, 3, SIZE, SIZE)).shape[1]
        more = tiny_teacher() if self.method.frozen_teacher == "required" else {}
        built = self.method(backbone, self.config, **more).train()
        follow_images(built, built.backbone)
        return built.double() if double else built

    def batch(self, step: int, rank: int = 0, world: int = 1, double: bool = False) -> Batch:
        """The part of one rank of the images of a step."""
        part = COUNT // world
        index = torch.arange(step * COUNT + rank * part, step * COUNT + (rank + 1) * part)
        pixels = torch.stack([_image(int(i)) for i in index])
        at = SampleKey(0, step, index)
        views = make_views(pixels, self.groups, at, Normalization(MEAN, STD), False)
        if double:
            views = [view.double() for view in views]
        return Batch(views, index % CLASSES, at, step)


def _image(i: int) -> Tensor:
    """(3, SIZE, SIZE) uint8: smooth, and another one for each i."""
    generator = torch.Generator().manual_seed(i)
    small = torch.rand(1, 3, 4, 4, generator=generator) * 255
    return nn.functional.interpolate(small, size=SIZE, mode="bilinear")[0].to(torch.uint8)


def _finite(case: _Case) -> Iterator[str]:
    """loss"""
    method, batch = case.build(), case.batch(0)
    for amp in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            output = method(batch)
        kind = "bf16" if amp else "fp32"
        if not isinstance(output, Output):
            yield f"forward returns a {type(output).__name__}; return Output(loss, features)"
            return
        if output.loss.shape != () or not math.isfinite(output.loss.item()):
            yield f"{kind}: {output.loss}; it must be one finite number, the mean over the images"
        if output.loss.dtype != torch.float32:
            yield f"{kind}: of type {output.loss.dtype}; compute it in float32"
        width = (COUNT, method.backbone.num_features)
        if tuple(output.features.shape) != width:
            yield f"features {tuple(output.features.shape)}; they are the encoder's, {width}"
        if any(len(z) != COUNT for z in output.embeddings):
            yield "embeddings of another number of rows than the batch has"


def _gradients(case: _Case) -> Iterator[str]:
    """gradients"""
    method = case.build()
    method(case.batch(0)).loss.backward()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            yield f"none in {key}; use it in the loss, or set requires_grad=False"
        elif parameter.grad is not None and not parameter.grad.isfinite().all():
            yield f"not finite in {key}"


def _pure(case: _Case) -> Iterator[str]:
    """forward"""
    method, batch = case.build(), case.batch(0)
    torch.manual_seed(1)
    first = method(batch).loss.item()
    torch.manual_seed(1)
    if method(batch).loss.item() != first:
        yield (
            "a second forward of the same batch gives another loss; change state in after_step, "
            "and draw random numbers from batch.keys"
        )


def _train(
    method: Method, optimizer: torch.optim.Optimizer, case: _Case, steps: range, **part: Any
) -> list[float]:
    losses = []
    for step in steps:
        torch.manual_seed(step)
        loss = method(case.batch(step, **part)).loss
        loss.backward()
        method.after_backward(step / (2 * STEPS))
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step / (2 * STEPS))
        losses.append(loss.item())
    return losses


def _optimizer(method: Method) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.05)


def _resumes(case: _Case) -> Iterator[str]:
    """resume"""
    whole = case.build()
    optimizer = _optimizer(whole)
    _train(whole, optimizer, case, range(STEPS))
    state = copy.deepcopy(whole.state_dict())
    expected = _train(whole, optimizer, case, range(STEPS, 2 * STEPS))
    other = case.build()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    other.load_state_dict(state)
    found = _train(other, _optimizer(other), case, range(STEPS, 2 * STEPS))
    if found != expected:
        yield (
            f"losses {found} after loading the state, {expected} without an interruption; keep all "
            f"state in parameters and buffers"
        )


def _ranks(case: _Case) -> Iterator[str]:
    """two processes"""
    one = _measured(case, 0, 1)
    try:
        two = in_two_processes(lambda rank, world: _measured(case, rank, world))
    except RuntimeError as error:
        yield str(error)
        return
    loss = sum(found["loss"] for found in two) / 2
    if not math.isclose(loss, one["loss"], rel_tol=ROUNDING, abs_tol=ROUNDING):
        yield (
            f"the loss is {loss:.9g}, of one process {one['loss']:.9g}; gather what it compares "
            f"with selfsight.distributed.gather"
        )
    for what in ("gradients", "state"):
        for key, expected in one[what].items():
            values = [found[what][key] for found in two]
            if what == "gradients":
                values = [sum(values) / 2]
            scale = expected.abs().max().item()
            most = max((value - expected).abs().max().item() for value in values)
            if most > ROUNDING * max(scale, 0.01):
                yield f"{what} of {key} differ by {most:.2g} from those of one process"


def _measured(case: _Case, rank: int, world: int) -> dict[str, Any]:
    """Loss and gradients of a first step, and the state after a few, in float64."""
    method = case.build(double=True)
    torch.manual_seed(0)
    output = method(case.batch(0, rank, world, double=True))
    output.loss.backward()
    gradients = {
        key: parameter.grad.clone()
        for key, parameter in method.named_parameters()
        if parameter.grad is not None
    }
    method.after_step(0.0)
    state = {
        key: value.clone()
        for key, value in method.state_dict().items()
        if value.is_floating_point()
    }
    return {"loss": output.loss.item(), "gradients": gradients, "state": state}
