"""What a view does on a GPU, seen on fake tensors: no waiting, few kernels, the same numbers.

There need not be a GPU: fake tensors carry its name and shapes, and what depends on their numbers,
for which a real one would make the host wait, raises.
"""

import shutil

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from benchmarks.common import MEAN, STD
from benchmarks.launches import Launches, kernels, launches
from selfsight import randomness
from selfsight.batch import Normalization, SampleKey
from selfsight.config import validate
from selfsight.views import make
from selfsight.views.make import ViewSpec, finish_crops, make_views
from selfsight.views.recipe import PRESETS, ViewGroup, preset
from tests.views.test_views import BANDS, EVERYTHING, FINETUNE, WIDE, pictures

PHOTOGRAPHS = sorted(name for name in PRESETS if not name.endswith("-small"))


def kinds(name: str) -> list[ViewSpec]:
    return [
        ViewSpec(validate(ViewGroup, group), Normalization(MEAN, STD)) for group in preset(name)
    ]


@pytest.mark.parametrize("crop", [True, False], ids=["whole", "crops"])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_no_view_waits_for_the_gpu_or_sends_it_more_than_numbers(name, crop):
    for kind in kinds(name):
        seen = launches(kind, 8, 256 if crop else kind.group.size, crop)
        assert seen.copies == []
        assert 0 < seen.operations.total() < 600


@pytest.mark.parametrize(
    "work",
    [
        lambda x: torch.tensor([1.0, 2.0], device="cuda"),
        lambda x: torch.tensor(1.0, device="cuda"),
        lambda x: x[[0, 1]],
        lambda x: x.cpu(),
    ],
)
def test_copies_would_be_seen(work):
    with FakeTensorMode(), Launches() as seen:
        work(torch.empty(2, device="cuda"))
    assert len(seen.copies) == 1


def test_waiting_would_be_seen():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.empty(2, device="cuda").sum().item()


@pytest.mark.parametrize(
    ("group", "crop", "channels"),
    [(EVERYTHING, True, 3), (FINETUNE, False, 3), (BANDS, True, 12)],
)
def test_a_view_is_one_graph_whatever_seed_epoch_and_view(group, crop, channels, monkeypatch):
    """Traced as for a GPU, but run as it is: the numbers are those of the CPU's own way."""
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(
        make,
        "_compiled",
        lambda: [
            torch.compile(f, dynamic=False, fullgraph=True, backend=counter)
            for f in (randomness.numbers, make._steps)
        ],
    )
    torch._dynamo.reset()

    def views(epoch: int, compile: bool) -> list[torch.Tensor]:
        at, size = SampleKey(3, epoch, torch.arange(16)), 24 if crop else group.size
        if crop:
            x, kind = pictures(16, size, channels), ((*MEAN,) * 4, (*STD,) * 4)
            normalization = Normalization(*(numbers[:channels] for numbers in kind))
            return make_views(x, [group], at, normalization, compile)
        flips = torch.arange(32).view(2, 16) % 3 == epoch
        return finish_crops(
            [pictures(16, size)] * 2, flips, [group], at, Normalization(MEAN, STD), compile
        )

    for epoch in range(3):
        for a, b in zip(views(epoch, True), views(epoch, False), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=5e-5)
    assert counter.frame_count == 2  # the numbers, and all else


@pytest.mark.slow
@pytest.mark.parametrize(("crop", "most", "products"), [(False, 6, 2), (True, 10, 4)])
def test_a_view_on_a_gpu_is_a_handful_of_kernels(crop, most, products):
    """Draws, their use, the colours' two loops, the blur's matrix and all that follows it; whole
    images also need boxes, two matrices and their pixels in the order of the products."""
    count = kernels(kinds("byol")[1], 512, 256 if crop else 224, crop)
    assert count["triton"] <= most
    assert count["bmm"] == products


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the CPU")
@pytest.mark.parametrize(
    ("group", "channels", "kind"),
    [(EVERYTHING, 3, np.uint8), (WIDE, 4, np.uint8), (BANDS, 1, np.uint16), (BANDS, 12, np.uint16)],
)
def test_compiled_views_are_the_same(group, channels, kind):
    at, group = SampleKey(0, 0, torch.arange(16)), group.model_copy(update={"count": 1})
    x, numbers = pictures(16, 20, channels, kind), ((*MEAN,) * 4, (*STD,) * 4)
    normalization = Normalization(*(values[:channels] for values in numbers))
    (fused,) = make_views(x, [group], at, normalization, True)
    (plain,) = make_views(x, [group], at, normalization, False)
    torch.testing.assert_close(fused, plain, rtol=0, atol=5e-5)
    assert fused.is_contiguous(memory_format=torch.channels_last)
