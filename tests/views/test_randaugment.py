"""Each operation against timm's on Pillow images, random erasing against timm's, and their draws.

Tables of levels are integers and equal Pillow's exactly; autocontrast may differ by one level,
since Pillow truncates a product in floating point. Blends and affine maps keep the fractions that
Pillow cuts off: up to 1 level at the end, and 0.5 of the plainer image, of which at most 0.9 is
mixed in.
"""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits
from timm.data import auto_augment as timms
from timm.data.random_erasing import RandomErasing

from selfsight import randomness
from selfsight.views.ops import augment, randaugment
from selfsight.views.ops.randaugment import OP_SLOTS, OPS, Op

FILL = (124, 116, 104)
NAMES = {
    Op.AUTO_CONTRAST: "AutoContrast",
    Op.EQUALIZE: "Equalize",
    Op.INVERT: "Invert",
    Op.POSTERIZE: "PosterizeIncreasing",
    Op.SOLARIZE: "SolarizeIncreasing",
    Op.SOLARIZE_ADD: "SolarizeAdd",
    Op.COLOR: "ColorIncreasing",
    Op.CONTRAST: "ContrastIncreasing",
    Op.BRIGHTNESS: "BrightnessIncreasing",
    Op.SHARPNESS: "SharpnessIncreasing",
    Op.ROTATE: "Rotate",
    Op.SHEAR_X: "ShearX",
    Op.SHEAR_Y: "ShearY",
    Op.TRANSLATE_X: "TranslateXRel",
    Op.TRANSLATE_Y: "TranslateYRel",
}
TOLERANCE = {  # in levels of 255
    **dict.fromkeys((Op.EQUALIZE, Op.INVERT, Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD), 1e-4),
    Op.AUTO_CONTRAST: 1.001,
    **dict.fromkeys((Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS), 1.5),
    **dict.fromkeys((Op.ROTATE, Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y), 1.02),
}
every_op = pytest.mark.parametrize("op", NAMES, ids=NAMES.get)


def pictures(size: int = 36) -> torch.Tensor:
    """(9, 3, size, size) uint8: digits, smooth colours dark to bright, noise, a flat image."""
    generator = torch.Generator().manual_seed(0)
    digits = torch.tensor(load_digits().images[:3]).float()[:, None] / 16
    digits = F.interpolate(digits, size=size, mode="bilinear").expand(3, 3, size, size)
    smooth = F.interpolate(torch.rand(4, 3, 4, 4, generator=generator), size=size, mode="bicubic")
    smooth = smooth * torch.tensor([1, 0.6, 0.2, 0.7]).view(4, 1, 1, 1)
    smooth[3] += 0.3
    noise = torch.rand(1, 3, size, size, generator=generator)
    flat = torch.full_like(noise, 0.7)
    x = torch.cat([digits, smooth, noise, flat])
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def apply(
    pixels: torch.Tensor,
    op: int | torch.Tensor,
    magnitude: float | torch.Tensor,
    sign: float | torch.Tensor = 1.0,
) -> torch.Tensor:
    """Ours on uint8 images, in levels."""
    op, magnitude, sign = (torch.as_tensor(v).expand(len(pixels)) for v in (op, magnitude, sign))
    fill = tuple(f / 255 for f in FILL)
    return 255 * randaugment.apply(pixels.float() / 255, op, magnitude.float(), sign.float(), fill)


def oracle(pixels: torch.Tensor, op: Op, magnitude: float, sign: float) -> torch.Tensor:
    """timm's on the same images, with its level function and its operation."""
    level, name = timms.LEVEL_TO_ARG[NAMES[op]], NAMES[op]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timms, "_randomly_negate", lambda value: sign * value)
        arguments = level(magnitude, {}) if level else ()
    results = []
    for image in pixels:
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        options = {"fillcolor": FILL, "resample": Image.Resampling.BILINEAR}
        results.append(np.asarray(timms.NAME_TO_OP[name](picture, *arguments, **options)))
    return torch.tensor(np.stack(results)).permute(0, 3, 1, 2).float()


# Operations ---------------------------------------------------------------------------------------


@every_op
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("magnitude", [0.0, 1.0, 2.5, 4.9, 7.5, 9.0, 9.875])
def test_as_timm_and_pillow(op, magnitude, sign):
    x = pictures()
    ours, theirs = apply(x, op, magnitude, sign), oracle(x, op, magnitude, sign)
    assert (ours - theirs).abs().max() < TOLERANCE[op]


@every_op
def test_odd_sides_and_tiny_images(op):
    for x in (pictures(1), pictures(2), pictures(33), pictures()[..., :21], pictures()[:, :, 9:]):
        assert (apply(x, op, 9.0) - oracle(x, op, 9.0, 1.0)).abs().max() < TOLERANCE[op]


def test_the_strongest_posterize_keeps_no_bit():
    assert timms.LEVEL_TO_ARG["PosterizeIncreasing"](10.0, {}) == (0,)  # Pillow refuses 0
    assert (apply(pictures(), Op.POSTERIZE, 10.0) == 0).all()


@pytest.mark.parametrize("op", [Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD], ids=NAMES.get)
def test_magnitudes_become_timms_integers(op):
    ramp = torch.arange(256, dtype=torch.uint8).expand(1, 3, 256).reshape(1, 3, 16, 16)
    for magnitude in np.arange(0, 9.9, 0.125).tolist():
        expected = oracle(ramp, op, magnitude, 1.0)
        torch.testing.assert_close(apply(ramp, op, magnitude), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("op", range(Op.SOLARIZE_ADD + 1), ids=lambda op: NAMES[Op(op)])
@pytest.mark.parametrize("off", [-0.4, 0.4])
def test_tables_round_to_the_nearest_level(op, off):
    x = pictures()[:8].clamp(1, 254)
    assert torch.equal(apply(x + off, op, 7.0), apply(x, op, 7.0))


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_what_comes_from_outside_is_the_fill(sign):
    moved = apply(pictures(), Op.TRANSLATE_X, 10.0, sign)
    column = moved[:, :, :, 1 if sign < 0 else -2]
    torch.testing.assert_close(column, torch.tensor(FILL).float().view(3, 1).expand_as(column))


KINDS = st.lists(
    st.tuples(st.integers(-1, OPS - 1), st.floats(0, 10, width=32), st.sampled_from([-1.0, 1.0])),
    min_size=9,
    max_size=9,
)


@given(KINDS, st.lists(st.integers(0, 8), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_each_image_as_if_alone(kinds, rows):
    x = pictures(12)
    op, magnitude, sign = (torch.tensor(v) for v in zip(*kinds, strict=True))
    whole = apply(x, op, magnitude, sign)
    part = apply(x[rows], op[rows], magnitude[rows], sign[rows])
    torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-3)
    assert torch.equal(whole[op == Op.NONE], 255 * (x[op == Op.NONE].float() / 255))
    assert whole.min() >= 0
    assert whole.max() <= 255


def test_dense_path_of_other_devices_equals_the_cpus(monkeypatch):
    u = randomness.uniform(0, 0, torch.arange(90), 0, 4 * OP_SLOTS)
    x = pictures(12).repeat(10, 1, 1, 1).float() / 255
    sparse = randaugment.rand_augment(x.clone(), u, 9, 0.5, (0.5, 0.4, 0.3))
    monkeypatch.setattr(augment, "_PICK_ROWS_ON", set())
    dense = randaugment.rand_augment(x.clone(), u, 9, 0.5, (0.5, 0.4, 0.3))
    torch.testing.assert_close(sparse, dense, rtol=0, atol=1e-5)


def test_operations_follow_one_another():
    u = randomness.uniform(0, 0, torch.arange(90), 0, 3 * OP_SLOTS)
    x, fill = pictures(12).repeat(10, 1, 1, 1).float() / 255, (0.5, 0.4, 0.3)
    expected = x.clone()
    for numbers in (u[:, :OP_SLOTS], u[:, OP_SLOTS : 2 * OP_SLOTS], u[:, 2 * OP_SLOTS :]):
        expected = randaugment.apply(expected, *randaugment.draw(numbers, 7, 1), fill)
    assert torch.equal(randaugment.rand_augment(x.clone(), u, 7, 1, fill), expected)
    assert not torch.equal(expected, x)


# Draws --------------------------------------------------------------------------------------------

N = 30_000


def drawn(place: int, magnitude: float = 9.0, std: float = 0.5) -> tuple[torch.Tensor, ...]:
    u = randomness.uniform(0, 0, torch.arange(N), 0, 4 * OP_SLOTS)
    return randaugment.draw(u[:, place * OP_SLOTS :][:, :OP_SLOTS], magnitude, std)


@pytest.mark.parametrize("place", range(4))
def test_half_are_applied_and_all_kinds_equally(place):
    op, _, sign = drawn(place)
    assert stats.binomtest(int((op != Op.NONE).sum()), N, 0.5).pvalue > 1e-3
    counts = torch.bincount(op[op != Op.NONE], minlength=OPS)
    assert len(counts) == OPS == len(NAMES)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    for kind in NAMES:
        assert stats.binomtest(int((sign[op == kind] > 0).sum()), int(counts[kind])).pvalue > 1e-4


def test_operations_are_drawn_independently():
    for draws in zip(drawn(0), drawn(1), strict=True):
        assert abs(np.corrcoef(*(d.float().numpy() for d in draws))[0, 1]) < 4 / N**0.5
    table = np.histogram2d(drawn(0)[0].numpy(), drawn(1)[0].numpy(), bins=OPS + 1)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_magnitudes_are_normal_and_clipped():
    free = drawn(0, 5.0, 0.5)[1].numpy()
    assert stats.kstest(free, stats.norm(5, 0.5).cdf).pvalue > 1e-3
    clipped = drawn(1, 9.0, 2.0)[1]
    assert clipped.max() == 10
    share = float((clipped == 10).float().mean())
    assert abs(share - stats.norm.sf(0.5)) < 4 * (0.3 * 0.7 / N) ** 0.5
    assert drawn(2, 1.0, 2.0)[1].min() == 0
    assert (drawn(3, 9.0, 0.0)[1] == 9).all()


def test_the_ends_of_the_uniform_numbers():
    u = torch.tensor([0.0, 1 - 2.0**-24]).repeat_interleave(OP_SLOTS).view(2, OP_SLOTS)
    u[:, 0] = 0  # applied
    op, magnitude, _ = randaugment.draw(u, 9.0, 0.5)
    assert op.tolist() == [0, OPS - 1]
    assert magnitude.isfinite().all()
    ends = torch.tensor([[0.0, 1 - 2.0**-24] * 2])
    assert randaugment.normals(ends).isfinite().all()


# Random erasing -----------------------------------------------------------------------------------

AREA, RATIO = (0.02, 1 / 3), (0.3, 10 / 3)


@given(
    st.integers(1, 80),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
    st.floats(0.1, 10),
    st.floats(1, 4),
    st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_boxes_lie_inside_with_the_area_and_ratio_asked_for(size, low, more, narrow, wider, seed):
    area, ratio = (low, low + (1 - low) * more), (narrow, narrow * wider)
    u = randomness.uniform(seed, 0, torch.arange(20), 0, augment.CROP_SLOTS)
    boxes = randaugment.erase_boxes(u, size, area, ratio)
    top, left, height, width = boxes.unbind(1)
    assert ((top >= 0) & (top + height <= size)).all()
    assert ((left >= 0) & (left + width <= size)).all()
    assert ((height > 0) == (width > 0)).all()
    h, w = height[height > 0], width[height > 0]  # each rounded by at most half a pixel
    assert ((h + 0.5) * (w + 0.5) >= area[0] * size**2 * (1 - 1e-9)).all()
    assert ((h - 0.5) * (w - 0.5) <= area[1] * size**2 * (1 + 1e-9)).all()
    assert ((w + 0.5) / (h - 0.5) >= ratio[0] * (1 - 1e-9)).all()
    assert ((w - 0.5) / (h + 0.5) <= ratio[1] * (1 + 1e-9)).all()


def test_what_does_not_fit_is_not_erased():
    u = randomness.uniform(0, 0, torch.arange(20), 0, augment.CROP_SLOTS)
    boxes = randaugment.erase_boxes(u, 32, (0.9, 1.0), (3.0, 3.0))
    assert (boxes[:, 2:] == 0).all()
    x = torch.zeros(20, 3, 32, 32)
    assert torch.equal(randaugment.erase(x, boxes, torch.ones_like(x)), x)


def test_boxes_are_distributed_as_timms(monkeypatch):
    n, size = 3000, 48
    u = randomness.uniform(0, 0, torch.arange(n), 0, augment.CROP_SLOTS)
    top, left, height, width = randaugment.erase_boxes(u, size, AREA, RATIO).unbind(1)
    monkeypatch.setattr("timm.data.random_erasing.random", random.Random(0))
    eraser = RandomErasing(probability=1, mode="const", device="cpu")
    erased = eraser(torch.ones(n, 1, size, size))[:, 0] == 0
    rows, columns = erased.any(2), erased.any(1)
    theirs = [rows.int().argmax(1), columns.int().argmax(1), rows.sum(1), columns.sum(1)]
    ours = [top, left, height, width]
    for pair in (ours, theirs):
        pair += [pair[2] * pair[3], pair[2] / pair[3]]
    for mine, other in zip(ours, theirs, strict=True):
        assert stats.ks_2samp(mine.numpy(), other.numpy()).pvalue > 1e-3


def test_erase_is_the_loop():
    x, noise = (
        torch.rand(6, 3, 10, 10, generator=torch.Generator().manual_seed(k)) for k in (0, 1)
    )
    boxes = torch.tensor(
        [[0, 0, 3, 4], [2, 5, 1, 5], [9, 9, 1, 1], [0, 0, 10, 10], [4, 1, 0, 0], [3, 2, 6, 2]]
    )
    expected = x.clone()
    for image, box, other in zip(expected, boxes.tolist(), noise, strict=True):
        top, left, height, width = box
        place = (slice(None), slice(top, top + height), slice(left, left + width))
        image[place] = other[place]
    assert torch.equal(randaugment.erase(x, boxes, noise), expected)


def test_normals_are_normal_and_independent():
    u = randomness.uniform(0, 0, torch.arange(20_000), 0, 4)
    z = randaugment.normals(u).numpy()
    for column in z.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(z.T) - np.eye(4)).max() < 4 / 20_000**0.5
    assert np.abs(np.corrcoef((z**2).T) - np.eye(4)).max() < 4 / 20_000**0.5
