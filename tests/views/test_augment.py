"""Each op against torchvision.transforms.v2.functional with equal parameters.

Both compute in float32 but in another order of operations, so they agree to a few units of 2^-23
times the number of terms: 2e-6 for sums of weights, 1e-5 where the hue's division by a small chroma
or the sampling grid's coordinates enlarge the rounding.
"""

import pytest
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import InterpolationMode

from selfsight import randomness
from selfsight.views.ops import augment

B = 12


def images(height: int = 40, width: int = 52, seed: int = 0) -> torch.Tensor:
    return torch.rand(B, 3, height, width, generator=torch.Generator().manual_seed(seed))


def parameters(low: float, high: float, *shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(B, *shape, generator=generator)


def assert_close(ours: torch.Tensor, theirs: list[torch.Tensor], tolerance: float) -> None:
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(40, 52, 32), (8, 8, 16), (90, 33, 24), (40, 52, (48, 17))]
)
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_resized_crop(height, width, size, kind):
    x = images(height, width)
    white = {"uint8": 255, "uint16": 65535}.get(kind, 1)
    if white > 1:
        x = (x * white).round().to(getattr(torch, kind))
    u = randomness.uniform(0, 0, torch.arange(B), 0, augment.CROP_SLOTS)
    boxes = augment.crop_boxes(u, height, width, (0.08, 1.0), (0.75, 4 / 3))
    flip = torch.arange(B) % 2 == 0
    ours = augment.resized_crop(x, boxes, size, flip)
    theirs = []
    for image, box, mirrored in zip(x, boxes.tolist(), flip.tolist(), strict=True):
        pixels = image.float() / white
        sides = [size, size] if isinstance(size, int) else list(size)
        crop = F.resized_crop(pixels, *box, sides, antialias=True)
        theirs.append(F.horizontal_flip(crop) if mirrored else crop)
    assert_close(ours, theirs, 2e-6)


def test_grayscale_and_solarize():
    x = images()
    gray = torch.cat(augment.grayscale(x.split(1, 1)), 1)
    assert_close(gray, [F.rgb_to_grayscale(i, 3) for i in x], 1e-6)
    assert torch.equal(augment.solarize(x, 0.5), F.solarize(x, 0.5))


@pytest.mark.parametrize("kernel", [3, 9, 23])
def test_gaussian_blur(kernel):
    x, sigma = images(), parameters(0.1, 2.0)
    theirs = [
        F.gaussian_blur(i, [kernel, kernel], [s, s]) for i, s in zip(x, sigma.tolist(), strict=True)
    ]
    assert_close(augment.gaussian_blur(x, sigma, kernel), theirs, 2e-6)


@given(st.integers(1, 12), st.integers(0, 11), st.floats(0.05, 9))
@settings(max_examples=100)
def test_blur_mirrors_at_the_borders(size, reach, sigma):
    reach = min(reach, size - 1)
    x = images(size, size)
    weight = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weight = torch.outer(weight, weight) / weight.sum() ** 2
    padded = torch.nn.functional.pad(x, [reach] * 4, mode="reflect")
    expected = torch.nn.functional.conv2d(padded, weight.expand(3, 1, -1, -1), groups=3)
    blurred = augment.gaussian_blur(x, torch.full((B,), sigma), 2 * reach + 1)
    torch.testing.assert_close(blurred, expected, rtol=0, atol=2e-6)


def test_blur_wider_than_the_image_keeps_its_mean_level():
    x = torch.full((B, 3, 4, 5), 0.7)
    torch.testing.assert_close(augment.gaussian_blur(x, parameters(0.1, 9), 99), x)


@pytest.mark.parametrize("shear", [0.0, 1.0])
@pytest.mark.parametrize("sides", [(32, 32), (24, 40), (41, 20)])
def test_affine(shear, sides):
    x = images(*sides)
    angle, zoom = parameters(-30, 30), parameters(0.75, 1.25, seed=2)
    shift, tilt = parameters(-0.1, 0.1, 2, seed=3), shear * parameters(-20, 20, seed=4)
    theirs = [
        F.affine(
            x[i],
            float(angle[i]),
            (shift[i] * torch.tensor(sides[::-1])).tolist(),
            float(zoom[i]),
            [float(tilt[i]), 0.0],
            InterpolationMode.BILINEAR,
        )
        for i in range(B)
    ]
    assert_close(augment.affine(x, angle, shift, zoom, tilt), theirs, 1e-5)


def test_normalize():
    x, mean, std = images(), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    torch.testing.assert_close(augment.normalize(x, mean, std), F.normalize(x, mean, std))
    for channels in (1, 2, 12):
        x = torch.rand(B, channels, 3, 4)
        mean, std = (tuple(0.05 * (n + k) for n in range(channels)) for k in (1, 2))
        torch.testing.assert_close(augment.normalize(x, mean, std), F.normalize(x, mean, std))
        with pytest.raises(ValueError, match=f"{channels} channels, and 3 means"):
            augment.normalize(x, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_gain_noise_and_turns():
    x, factor, noise = images()[:, :, :, :40], parameters(0.5, 1.5, 3), torch.randn(B, 3, 40, 40)
    naive = [
        torch.stack([(c * f).clamp(0, 1) for c, f in zip(image, row, strict=True)])
        for image, row in zip(x, factor, strict=True)
    ]
    assert_close(augment.gain(x, factor), naive, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda _: noise)
        theirs = F.gaussian_noise(x, 0.0, 0.2)
    torch.testing.assert_close(augment.add_noise(x, noise, 0.2), theirs, rtol=0, atol=1e-6)
    turns = torch.arange(B) % 4
    expected = [F.rotate(i, 90.0 * k) for i, k in zip(x, turns.tolist(), strict=True)]
    assert_close(augment.rotate90(x.clone(), turns), expected, 0)


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_luma_of_other_channels_is_their_mean(channels):
    x = torch.rand(B, channels, 5, 6)
    mean = torch.stack([x[:, c] for c in range(channels)]).sum(0)[:, None] / channels
    torch.testing.assert_close(augment.luma(x.split(1, 1)), mean)
    gray = torch.cat(augment.grayscale(x.split(1, 1)), 1)
    torch.testing.assert_close(gray, mean.expand_as(x))


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.floats(0.01, 1.0),
    st.floats(0.3, 1.0),
    st.floats(1.0, 3.0),
    st.integers(0, 10**6),
)
@settings(max_examples=200, deadline=None)
def test_crop_boxes_lie_inside(height, width, least, narrow, wide, seed):
    u = randomness.uniform(seed, 0, torch.arange(20), 0, augment.CROP_SLOTS)
    box = augment.crop_boxes(u, height, width, (least, 1.0), (narrow, wide))
    top, left, h, w = box.unbind(1)
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert ((top >= 0) & (top + h <= height)).all()
    assert ((left >= 0) & (left + w <= width)).all()


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=30),
    st.sampled_from([(0.08, 1.0), (0.9, 1.0), (0.01, 0.02)]),
    st.sampled_from([(0.75, 4 / 3), (1.0, 1.0), (2.0, 3.0)]),
    st.sampled_from([None, (0, 0)]),
    st.integers(0, 10**6),
)
@settings(max_examples=60)
def test_crop_boxes_of_different_images_as_of_each(sizes, scale, ratio, otherwise, seed):
    u = randomness.uniform(seed, 0, torch.arange(len(sizes)), 0, augment.CROP_SLOTS)
    height, width = torch.tensor(sizes).unbind(1)
    together = augment.crop_boxes(u, height, width, scale, ratio, otherwise)
    for n, (h, w) in enumerate(sizes):
        alone = augment.crop_boxes(u[n : n + 1], h, w, scale, ratio, otherwise)
        assert torch.equal(together[n], alone[0])


def test_crop_boxes_are_distributed_as_torchvisions():
    n, height, width = 4000, 60, 90
    u = randomness.uniform(0, 0, torch.arange(n), 0, augment.CROP_SLOTS)
    ours = augment.crop_boxes(u, height, width, (0.08, 1.0), (0.75, 4 / 3)).double()
    torch.manual_seed(0)
    sampler = T.RandomResizedCrop(8, scale=(0.08, 1.0), ratio=(0.75, 4 / 3))
    image = torch.zeros(3, height, width)
    drawn = [sampler.make_params([image]) for _ in range(n)]
    theirs = torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in drawn]).double()
    for column in range(4):
        p = stats.ks_2samp(ours[:, column].numpy(), theirs[:, column].numpy()).pvalue
        assert p > 1e-3, column
    area, ratio = (lambda b: b[:, 2] * b[:, 3]), (lambda b: b[:, 3] / b[:, 2])
    for measure in (area, ratio):
        assert stats.ks_2samp(measure(ours).numpy(), measure(theirs).numpy()).pvalue > 1e-3


def test_where_gives_the_same_with_and_without_picking_rows(monkeypatch):
    x, p = images(), parameters(0, 2)
    mask = torch.arange(B) % 3 == 0

    def scale(x: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return x * p.view(-1, 1, 1, 1)

    picked = augment.where(mask, scale, x.clone(), p)
    monkeypatch.setattr(augment, "_PICK_ROWS_ON", set())
    selected = augment.where(mask, scale, x.clone(), p)
    torch.testing.assert_close(picked, selected, rtol=0, atol=1e-6)
    assert torch.equal(picked[~mask], x[~mask])
