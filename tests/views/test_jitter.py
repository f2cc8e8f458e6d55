"""Colour jitter against torchvision's four ops, each image in its own order, in both of its forms.

The CPU goes through the four places one by one; compiled code makes three maps, the hue, three
maps, after a pass for the mean. Both must give what torchvision gives, op by op.
"""

import itertools

import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from selfsight.views.ops import augment
from selfsight.views.ops.jitter import BRIGHTNESS, CONTRAST, HUE, SATURATION, color_jitter

ORDERS = list(itertools.permutations(range(4)))
OPS = {
    BRIGHTNESS: F.adjust_brightness,
    CONTRAST: F.adjust_contrast,
    SATURATION: F.adjust_saturation,
    HUE: F.adjust_hue,
}
NOTHING = (1.0, 1.0, 1.0, 0.0)


@pytest.fixture(params=["in turn", "in two passes"])
def form(request, monkeypatch):
    if request.param == "in two passes":
        monkeypatch.setattr(augment, "_PICK_ROWS_ON", set())
    return request.param


def images(count: int, height: int = 9, width: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def jittered(x: torch.Tensor, values: torch.Tensor, orders: list[tuple[int, ...]]) -> torch.Tensor:
    """values: (B, 4) brightness, contrast, saturation, hue; orders: which op comes when."""
    place = torch.tensor([[order.index(op) for op in range(4)] for order in orders])
    return torch.cat(color_jitter(x.split(1, 1), *values.unbind(1), *place.unbind(1)), 1)


def oracle(x: torch.Tensor, values: torch.Tensor, orders: list[tuple[int, ...]]) -> torch.Tensor:
    out = []
    for image, row, order in zip(x, values.tolist(), orders, strict=True):
        for op in order:
            image = OPS[op](image, row[op])
        out.append(image)
    return torch.stack(out)


def check(x: torch.Tensor, values: torch.Tensor, orders: list[tuple[int, ...]]) -> None:
    before = x.clone()
    torch.testing.assert_close(
        jittered(x, values, orders), oracle(x, values, orders), rtol=0, atol=1e-5
    )
    assert torch.equal(x, before), "the input was changed"


@pytest.mark.parametrize("op", range(4))
def test_each_op_alone(form, op):
    low, high = (-0.5, 0.5) if op == HUE else (0.0, 2.0)
    values = torch.tensor([NOTHING] * 12)
    values[:, op] = torch.linspace(low, high, 12)
    check(images(12), values, [ORDERS[7]] * 12)


def test_every_order(form):
    generator = torch.Generator().manual_seed(3)
    values = 0.2 + 1.6 * torch.rand(len(ORDERS), 4, generator=generator)
    values[:, HUE] = (values[:, HUE] - 1) / 2
    check(images(len(ORDERS)), values, ORDERS)


@given(
    st.sampled_from(ORDERS),
    *[st.floats(0, 3, width=32)] * 3,
    st.one_of(st.just(0.0), st.floats(-0.5, 0.5, width=32)),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_both_forms_agree(order, brightness, contrast, saturation, hue, gray):
    """Also where values leave [0, 1] and are clamped in between, and on gray images."""
    x = images(2, 6, 5)
    x = x.mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous() if gray else x
    values = torch.tensor([[brightness, contrast, saturation, hue]] * 2)
    forms = []
    before = set(augment._PICK_ROWS_ON)
    try:
        for picks in ({"cpu"}, set()):
            augment._PICK_ROWS_ON.clear()
            augment._PICK_ROWS_ON.update(picks)
            forms.append(jittered(x.clone(), values, [order] * 2))
    finally:
        augment._PICK_ROWS_ON.update(before)
    torch.testing.assert_close(*forms, rtol=0, atol=2e-5)


def test_hue_of_gray_and_of_pure_colours(form):
    x = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 1], [1, 1, 0]])
    x = x.T.reshape(1, 3, 2, 3).repeat(12, 1, 1, 1)
    values = torch.tensor([NOTHING] * 12)
    values[:, HUE] = torch.linspace(-0.5, 0.5, 12)
    check(x, values, [ORDERS[0]] * 12)


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_other_channels_have_brightness_and_contrast_in_either_order(form, channels):
    """Contrast is about the mean of all values, since their luma is the mean of the channels."""
    x = torch.rand(24, channels, 9, 11, generator=torch.Generator().manual_seed(0))
    values = torch.rand(24, 4, generator=torch.Generator().manual_seed(1)) * 2
    values[:, SATURATION], values[:, HUE] = 1.0, 0.0
    expected = []
    for image, row, order in zip(x, values.tolist(), ORDERS, strict=True):
        for op in (op for op in order if op in (BRIGHTNESS, CONTRAST)):
            shade = (1 - row[op]) * image.mean() if op == CONTRAST else 0.0
            image = (row[op] * image + shade).clamp(0, 1)
        expected.append(image)
    found = jittered(x, values, ORDERS)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-5)
