"""`check_method` accepts every method of the package, and names what another one breaks."""

import pytest
import torch
from torch import nn

import selfsight
from selfsight import distributed
from selfsight.losses import nt_xent
from selfsight.methods import METHODS
from selfsight.testing import BrokenContract, TinyEncoder, check_method
from tests.conftest import small_heads


@pytest.mark.parametrize("name", ["simclr", "moco_v2", "dino", "mae", "ijepa"])
def test_the_packages_methods_keep_it(name):
    """Of each kind one: tests/methods and tests/test_distributed.py ask more of all of them."""
    check_method(METHODS[name], METHODS[name].Config(**small_heads(name)))


class Good(selfsight.Method):
    """SimCLR with one layer; `output` is what the others change."""

    def __init__(self, backbone, config=None):
        super().__init__(backbone, config)
        self.projector = nn.Linear(backbone.num_features, 8)

    def forward(self, batch):
        h = [self.backbone(view) for view in batch.views]
        return self.output(h[0], [self.projector(x) for x in h])

    def output(self, h, z):
        return selfsight.Output(nt_xent(*z, 0.2), h, tuple(z))


class NotFinite(Good):
    def output(self, h, z):
        return selfsight.Output((z[0] - z[0]).mean().log(), h)


class NoOutput(Good):
    def output(self, h, z):
        return nt_xent(*z, 0.2)


class LowPrecision(Good):
    def output(self, h, z):
        return selfsight.Output((z[0] - z[1]).square().mean().to(z[0].dtype), h)


class Projections(Good):
    def output(self, h, z):
        return selfsight.Output(nt_xent(*z, 0.2), z[0])


class Unused(Good):
    def __init__(self, backbone, config=None):
        super().__init__(backbone, config)
        self.spare = nn.Linear(2, 2)


class Counting(Good):
    """Its loss grows with the number of calls."""

    calls = 0

    def output(self, h, z):
        self.calls += 1
        return selfsight.Output(self.calls * nt_xent(*z, 0.2), h)


class Forgetful(Good):
    """What it remembers is in no buffer."""

    momentum = 1.0

    def output(self, h, z):
        return selfsight.Output(self.momentum * nt_xent(*z, 0.2), h)

    def after_step(self, progress):
        self.momentum *= 0.9


class Alone(Good):
    """It compares the images of its own process only."""

    def output(self, h, z):
        a, b = (nn.functional.normalize(x, dim=1) for x in z)
        return selfsight.Output((a @ b.T / 0.2).logsumexp(1).mean(), h)


class Local(Good):
    """The loss is right, but what it remembers is of its own process."""

    def __init__(self, backbone, config=None):
        super().__init__(backbone, config)
        self.register_buffer("mean", torch.zeros(8))

    def output(self, h, z):
        self.seen = z[0].detach().mean(0)
        return super().output(h, z)

    def after_step(self, progress):
        self.mean.copy_(self.seen)


class Shared(Local):
    def after_step(self, progress):
        self.mean.copy_(distributed.mean(self.seen))


class Failing(Good):
    def output(self, h, z):
        raise ValueError("no such thing")


@pytest.mark.parametrize("method", [Good, Shared])
def test_a_method_of_ones_own_keeps_it(method):
    check_method(method)
    check_method(method, backbone=TinyEncoder)


@pytest.mark.parametrize(
    ("method", "line"),
    [
        (NotFinite, "loss: fp32: -inf; it must be one finite number"),
        (NoOutput, "loss: forward returns a Tensor; return Output(loss, features)"),
        (LowPrecision, "loss: bf16: of type torch.bfloat16; compute it in float32"),
        (Projections, "loss: features (16, 8); they are the encoder's, (16, 24)"),
        (Unused, "gradients: none in spare.weight; use it in the loss"),
        (Counting, "forward: a second forward of the same batch gives another loss"),
        (Forgetful, "resume: losses ["),
        (Alone, "two processes: the loss is "),
        (Local, "two processes: state of mean differ by"),
        (Failing, "loss: ValueError: no such thing (test_contract.py:"),
    ],
)
def test_what_is_broken_is_named(method, line):
    with pytest.raises(BrokenContract) as error:
        check_method(method)
    lines = str(error.value).splitlines()
    assert any(f"{method.__name__} (test_contract.py): {line}" in found for found in lines), lines
    assert all(found.startswith(f"{method.__name__} (test_contract.py): ") for found in lines)
