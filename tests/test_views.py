"""A view is a function of its coordinates; probabilities, presets and the two code paths."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit import augment
from tacit.config import validate
from tacit.errors import UserError
from tacit.methods import METHODS
from tacit.views import make
from tacit.views.make import Coordinates, finish_crops, make_views
from tacit.views.recipe import PRESETS, ViewGroup, preset

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
EVERYTHING = ViewGroup(
    count=2, size=16, flip=0.5, affine=0.5, rotation=20, translation=0.1, zoom=(0.8, 1.2), shear=10,
    jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2, blur=0.5,
    solarize=0.2,
)  # fmt: skip


def pictures(n: int, size: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator).to(torch.uint8)


def views_of(rows: list[int], epoch: int = 0, seed: int = 0) -> list[torch.Tensor]:
    x = pictures(64)
    return make_views(
        x[rows], [EVERYTHING], Coordinates(seed, epoch, torch.tensor(rows)), MEAN, STD
    )


@given(st.lists(st.integers(0, 63), min_size=1, max_size=40), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_same_view_whatever_batch_and_order(rows, epoch):
    whole = views_of(list(range(64)), epoch)
    part = views_of(rows, epoch)
    for a, b in zip(whole, part, strict=True):
        # A sum's order of terms, and so its last bit, may follow the batch's shape.
        torch.testing.assert_close(a[rows], b, rtol=0, atol=5e-5)


def test_chunks_do_not_matter(monkeypatch):
    whole = views_of(list(range(64)))
    monkeypatch.setattr(make, "CHUNK", 3 * 16 * 16 * 7)
    for a, b in zip(whole, views_of(list(range(64))), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-5)


def test_dense_path_of_other_devices_equals_the_cpus(monkeypatch):
    sparse = views_of(list(range(64)))
    monkeypatch.setattr(augment, "_PICK_ROWS_ON", set())
    for a, b in zip(sparse, views_of(list(range(64))), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-5)


@pytest.mark.parametrize("change", ["seed", "epoch", "index", "view"])
def test_other_coordinates_other_view(change):
    x = pictures(1)
    at = {"seed": 0, "epoch": 0, "index": 0}
    one, two = make_views(x, [EVERYTHING], Coordinates(0, 0, torch.tensor([0])), MEAN, STD)
    if change == "view":
        assert not torch.allclose(one, two)
        return
    at[change] = 1
    other = Coordinates(at["seed"], at["epoch"], torch.tensor([at["index"]]))
    assert not torch.allclose(one, make_views(x, [EVERYTHING], other, MEAN, STD)[0])


def test_output_is_normalised_and_channels_last():
    plain = ViewGroup(size=20, crop_scale=(1, 1), crop_ratio=(1, 1))
    x = pictures(4)
    (view,) = make_views(x, [plain], Coordinates(0, 0, torch.arange(4)), MEAN, STD)
    expected = augment.normalize(x.float() / 255, MEAN, STD)
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)
    assert view.is_contiguous(memory_format=torch.channels_last)


def test_crops_cut_while_decoding_get_the_same_colours():
    group = EVERYTHING.model_copy(
        update={"crop_scale": (1, 1), "crop_ratio": (1, 1), "size": 20, "flip": 0}
    )
    at = Coordinates(0, 0, torch.arange(8))
    whole = make_views(pictures(8), [group], at, MEAN, STD)
    cut = finish_crops([pictures(8)] * 2, [group], at, MEAN, STD)
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("name", "detect"),
    [
        ("flip", lambda before, after: torch.equal(after, before.flip(2))),
        ("grayscale", lambda before, after: bool((after[0] == after[1]).all())),
        ("solarize", lambda before, after: bool((after < before - 0.01).any())),
        ("blur", lambda before, after: bool((after - before).abs().max() > 1e-3)),
        ("jitter", lambda before, after: bool((after - before).abs().max() > 1e-3)),
        ("affine", lambda before, after: bool((after - before).abs().max() > 1e-3)),
    ],
)
def test_probability_is_the_rate(name, detect):
    n, p = 2000, 0.3
    strength = {"brightness": 0.5, "rotation": 30, "blur_sigma": (1, 2)}
    group = ViewGroup(size=12, crop_scale=(1, 1), crop_ratio=(1, 1), **{name: p}, **strength)
    x = pictures(n, 12)
    none, unit = (0, 0, 0), (1, 1, 1)
    (view,) = make_views(x, [group], Coordinates(0, 0, torch.arange(n)), none, unit)
    (same,) = make_views(
        x, [group.model_copy(update={name: 0.0})], Coordinates(0, 0, torch.arange(n)), none, unit
    )
    hit = np.mean([detect(a, b) for a, b in zip(same, view, strict=True)])
    assert abs(hit - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_jitter_draws_every_order_equally():
    u = Coordinates(0, 0, torch.arange(24_000)).draws(0)
    *_, order = make._jitter(EVERYTHING, u)
    _, counts = torch.unique(order, dim=0, return_counts=True)
    assert len(counts) == 24
    assert counts.min() > 850
    assert counts.max() < 1150


def test_every_method_has_its_preset_in_two_sizes():
    wanted = {method.default_views for method in METHODS.values()}
    assert wanted | {f"{name}-small" for name in wanted} <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    groups = [validate(ViewGroup, g) for g in preset(name)]
    count = sum(g.count for g in groups)
    for method in METHODS.values():
        if method.default_views == name.removesuffix("-small"):
            least, most = method.view_count
            assert least <= count
            assert most is None or count <= most
    if name.startswith("byol"):
        assert groups[0] != groups[1]


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"views=simcrl: no such preset\. Did you mean 'simclr'"):
        preset("simcrl")
    with pytest.raises(UserError, match="crop_scale"):
        validate(ViewGroup, {"crop_scale": [0.5, 0.2]})
    with pytest.raises(UserError, match="flip=2"):
        validate(ViewGroup, {"flip": 2})
