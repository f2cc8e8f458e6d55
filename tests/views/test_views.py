"""A view is a function of its coordinates; probabilities, presets and the two code paths."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from selfsight import randomness
from selfsight.batch import Normalization, SampleKey
from selfsight.config import validate
from selfsight.data.bad import BadImages
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError
from selfsight.methods import METHODS
from selfsight.train.loader import ViewLoader
from selfsight.views import make
from selfsight.views.make import finish_crops, make_views
from selfsight.views.ops import augment, randaugment
from selfsight.views.recipe import PRESETS, ViewGroup, check_channels, preset, preset_for
from tests.channels import KINDS, NAMES, images_of

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
EVERYTHING = ViewGroup(
    count=2, size=16, flip=0.5, affine=0.5, rotation=20, translation=0.1, zoom=(0.8, 1.2), shear=10,
    jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2, blur=0.5,
    solarize=0.2,
)  # fmt: skip

# What images have that are not RGB, of a shape that is no square, and of one.
WIDE = ViewGroup(
    count=2, size=(12, 20), crop_ratio=(1, 2), flip=0.5, affine=0.5, rotation=20,
    translation=0.1, shear=10, jitter=0.8, brightness=0.4, contrast=0.4, blur=0.5, solarize=0.2,
    erase=0.5,
)  # fmt: skip
BANDS = ViewGroup(size=16, flip=0.5, rotate90=0.75, gain=0.4, noise=0.1, blur=0.5, erase=0.5)

# Whole images, whose pixels are exact: RandAugment rounds to levels, where a last bit may decide.
FINETUNE = ViewGroup(
    count=2, size=20, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0.5, rand_augment=3, erase=0.5,
)  # fmt: skip


def pictures(n: int, size: int = 20, channels: int = 3, kind: type = np.uint8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(
        0, np.iinfo(kind).max + 1, (n, channels, size, size), generator=generator
    )
    return torch.from_numpy(values.numpy().astype(kind))


RGB = (3, np.uint8)
every_kind = pytest.mark.parametrize("kind", [RGB, *KINDS], ids=["RGB", *NAMES])


def views_of(rows: list[int], epoch: int = 0, kind: tuple[int, type] = RGB) -> list[torch.Tensor]:
    at, groups = SampleKey(0, epoch, torch.tensor(rows)), [WIDE, BANDS]
    mean, std = ([*MEAN] * 4)[: kind[0]], ([*STD] * 4)[: kind[0]]
    if kind == RGB:
        groups += [EVERYTHING, FINETUNE]
    return make_views(pictures(64, 20, *kind)[rows], groups, at, Normalization(mean, std))


@every_kind
@given(rows=st.lists(st.integers(0, 63), min_size=1, max_size=40), epoch=st.integers(0, 1000))
@settings(max_examples=6, deadline=None)
def test_same_view_whatever_batch_and_order(kind, rows, epoch):
    whole = views_of(list(range(64)), epoch, kind)
    part = views_of(rows, epoch, kind)
    for a, b in zip(whole, part, strict=True):
        # A sum's order of terms, and so its last bit, may follow the batch's shape.
        torch.testing.assert_close(a[rows], b, rtol=0, atol=5e-5)


@every_kind
def test_chunks_do_not_matter(kind, monkeypatch):
    whole = views_of(list(range(64)), kind=kind)
    monkeypatch.setattr(make, "CHUNK", kind[0] * 16 * 16 * 7)
    for a, b in zip(whole, views_of(list(range(64)), kind=kind), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-5)


@every_kind
def test_dense_path_of_other_devices_equals_the_cpus(kind, monkeypatch):
    sparse = views_of(list(range(64)), kind=kind)
    monkeypatch.setattr(augment, "_PICK_ROWS_ON", set())
    for a, b in zip(sparse, views_of(list(range(64)), kind=kind), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-5)


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_views_of_16_bits_are_those_of_8_where_the_values_are(channels):
    """257 times an 8-bit value is the same brightness of 65535."""
    deep = torch.from_numpy(pictures(64, 20, channels).numpy().astype(np.uint16) * 257)
    at, groups = SampleKey(0, 0, torch.arange(64)), [WIDE, BANDS]
    normalization = Normalization((0.5,) * channels, (0.3,) * channels)
    pairs = (make_views(x, groups, at, normalization) for x in (pictures(64, 20, channels), deep))
    for a, b in zip(*pairs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-5)


@every_kind
def test_two_ranks_make_the_views_of_one(kind, monkeypatch):
    channels, value = kind
    groups, normalization = [WIDE, BANDS], Normalization((0.5,) * channels, (0.3,) * channels)

    def batches(world: int, rank: int) -> list[torch.Tensor]:
        monkeypatch.setattr("selfsight.distributed.world_size", lambda: world)
        monkeypatch.setattr("selfsight.distributed.rank", lambda: rank)
        how = {"batch_size": 16, "seed": 3, "normalization": normalization}
        loader = ViewLoader(images_of(channels, value), groups, **how)
        return [batch.views for (batch,) in loader.steps(88, 91)]  # from one epoch to the next

    for whole, *halves in zip(batches(1, 0), batches(2, 0), batches(2, 1), strict=True):
        for view, *parts in zip(whole, *halves, strict=True):
            torch.testing.assert_close(view, torch.cat(parts), rtol=0, atol=5e-5)


def test_numbers_of_the_first_steps_are_the_ones_they_always_were():
    """New steps take new slots: a run of before resumes with the same views."""
    slots = make.Slot
    assert (slots.FLIP, slots.JITTER, slots.SOLARIZE) == (22, 29, 41)
    assert (slots.ERASE, slots.ERASE_BOX, slots.RAND_AUGMENT) == (42, 43, 65)
    assert (slots.TURN, slots.QUARTERS, slots.GAIN, make.SLOTS) == (85, 86, 87, 119)
    u = SampleKey(1, 2, torch.arange(5)).uniform(3, make.SLOTS)[:, : make.Slot.SOLARIZE + 1]
    assert hashlib.sha256(u.numpy().tobytes()).hexdigest()[:16] == "d65ae6eb065958fd"


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith("finetune")])
def test_no_other_preset_has_the_steps_of_finetuning(name, monkeypatch):
    for step in ("rand_augment", "erase"):
        monkeypatch.delattr(randaugment, step)
    groups = [validate(ViewGroup, {**group, "size": 8}) for group in preset(name)]
    make_views(pictures(4), groups, SampleKey(0, 0, torch.arange(4)), Normalization(MEAN, STD))


@pytest.mark.parametrize("group", [EVERYTHING, FINETUNE], ids=["everything", "finetune"])
@pytest.mark.parametrize("change", ["seed", "epoch", "index", "view"])
def test_other_coordinates_other_view(change, group):
    x = pictures(1)
    at = {"seed": 0, "epoch": 0, "index": 0}
    one, two = make_views(x, [group], SampleKey(0, 0, torch.tensor([0])), Normalization(MEAN, STD))
    if change == "view":
        assert not torch.allclose(one, two)
        return
    at[change] = 1
    other = SampleKey(at["seed"], at["epoch"], torch.tensor([at["index"]]))
    assert not torch.allclose(one, make_views(x, [group], other, Normalization(MEAN, STD))[0])


def test_output_is_normalised_and_channels_last():
    plain = ViewGroup(size=20, crop_scale=(1, 1), crop_ratio=(1, 1))
    x = pictures(4)
    (view,) = make_views(x, [plain], SampleKey(0, 0, torch.arange(4)), Normalization(MEAN, STD))
    expected = augment.normalize(x.float() / 255, MEAN, STD)
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)
    assert view.is_contiguous(memory_format=torch.channels_last)


def test_crops_cut_while_decoding_get_the_same_colours():
    group = EVERYTHING.model_copy(update={"crop_scale": (1, 1), "crop_ratio": (1, 1), "size": 20})
    groups = [group, FINETUNE]
    at = SampleKey(0, 0, torch.arange(8))
    whole = make_views(pictures(8), groups, at, Normalization(MEAN, STD))
    draws = zip([group, group, FINETUNE, FINETUNE], range(4), strict=True)
    flips = [make.boxes_and_flips(g, at.uniform(v, make.CROP_DRAWS), 20, 20)[1] for g, v in draws]
    cut = finish_crops([pictures(8)] * 4, torch.stack(flips), groups, at, Normalization(MEAN, STD))
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
        ("erase", lambda before, after: bool((after - before).abs().max() > 1e-3)),
        ("rotate90", lambda before, after: bool((after - before).abs().max() > 1e-3)),
    ],
)
def test_probability_is_the_rate(name, detect):
    n, p = 2000, 0.3
    strength = {"brightness": 0.5, "rotation": 30, "blur_sigma": (1, 2)}
    group = ViewGroup(size=12, crop_scale=(1, 1), crop_ratio=(1, 1), **{name: p}, **strength)
    x = pictures(n, 12)
    none, unit = (0, 0, 0), (1, 1, 1)
    (view,) = make_views(x, [group], SampleKey(0, 0, torch.arange(n)), Normalization(none, unit))
    (same,) = make_views(
        x,
        [group.model_copy(update={name: 0.0})],
        SampleKey(0, 0, torch.arange(n)),
        Normalization(none, unit),
    )
    hit = np.mean([detect(a, b) for a, b in zip(same, view, strict=True)])
    assert abs(hit - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_turns_are_exact_and_equally_likely():
    group = ViewGroup(size=20, crop_scale=(1, 1), crop_ratio=(1, 1), rotate90=0.75)
    x, at = pictures(2000, channels=2), SampleKey(0, 0, torch.arange(2000))
    none, unit = Normalization((0, 0), (1, 1)), group.model_copy(update={"rotate90": 0.0})
    (plain,), (turned,) = make_views(x, [unit], at, none), make_views(x, [group], at, none)
    same = torch.stack(
        [(turned == torch.rot90(plain, k, (2, 3))).flatten(1).all(1) for k in range(4)]
    )
    assert (same.sum(0) == 1).all()
    counts = same.sum(1)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_every_channel_has_its_own_gain():
    group = ViewGroup(size=20, crop_scale=(1, 1), crop_ratio=(1, 1), gain=0.4)
    x, at = (pictures(500, channels=4) // 2).clamp(min=1), SampleKey(0, 0, torch.arange(500))
    none, plain = Normalization((0,) * 4, (1,) * 4), group.model_copy(update={"gain": 0.0})
    (before,), (after,) = make_views(x, [plain], at, none), make_views(x, [group], at, none)
    factor = after / before  # (B, 4, H, W)
    torch.testing.assert_close(factor, factor[..., :1, :1].expand_as(factor), rtol=1e-4, atol=0)
    for one in factor[..., 0, 0].T:
        assert stats.kstest((one.numpy() - 0.6) / 0.8, "uniform").pvalue > 1e-3
    between = np.corrcoef(factor[..., 0, 0].T.numpy()) - np.eye(4)
    assert np.abs(between).max() < 5 / 500**0.5


def test_noise_is_normal_and_new_for_every_value():
    group = ViewGroup(count=2, size=20, crop_scale=(1, 1), crop_ratio=(1, 1), noise=0.05, erase=1)
    x, at = torch.full((100, 4, 20, 20), 128, dtype=torch.uint8), SampleKey(0, 0, torch.arange(100))
    none = Normalization((0,) * 4, (1,) * 4)
    one, two = make_views(x, [group.model_copy(update={"erase": 0.0})], at, none)
    values = torch.stack([one, two]) - 128 / 255
    assert stats.kstest(values[:, :5].flatten().numpy() / 0.05, "norm").pvalue > 1e-3
    assert len(values.unique()) > 0.5 * values.numel()  # float32 has few values here
    assert abs(np.corrcoef(one.flatten(), two.flatten())[0, 1]) < 5 / one.numel() ** 0.5
    # no number is shared with the noise of erased boxes
    (filled, _) = make_views(x, [group], at, none)
    box = filled != one
    together = np.corrcoef(filled[box], one[box])[0, 1]
    assert abs(together) < 5 / int(box.sum()) ** 0.5


def test_jitter_draws_every_order_equally():
    u = SampleKey(0, 0, torch.arange(24_000)).uniform(0, make.SLOTS)
    order = torch.stack(make._jitter(EVERYTHING, u)[4:], 1)
    _, counts = torch.unique(order, dim=0, return_counts=True)
    assert len(counts) == 24
    assert counts.min() > 850
    assert counts.max() < 1150


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=20))
def test_ranks_are_those_of_a_stable_sort(rows):
    """Coarse numbers, so that most rows have ties."""
    u = torch.tensor(rows) / 4
    ranks = torch.stack(make._ranks(u), 1)
    assert torch.equal(ranks, u.argsort(dim=1, stable=True).argsort(1))


def erased(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[torch.Tensor, ...]:
    """Views of 200 black images, 3/4 of them erased, and what would be without erasing."""
    group = ViewGroup(count=2, size=20, crop_scale=(1, 1), crop_ratio=(1, 1), erase=0.75)
    x, at = torch.zeros(200, 3, 20, 20, dtype=torch.uint8), SampleKey(0, 0, torch.arange(200))
    plain = augment.normalize(x[:1].float(), mean, std)
    return *make_views(x, [group], at, Normalization(mean, std)), plain


def test_erased_pixels_are_standard_normal_after_the_normalisation():
    one, two, plain = erased((30.0, 40.0, 50.0), (7.0, 8.0, 9.0))
    hit, hit_too = (view != plain for view in (one, two))
    for view, mask in ((one, hit), (two, hit_too)):
        for channel in range(3):
            noise = view[:, channel][mask[:, channel]]
            assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3
    assert torch.equal(hit.all(1), hit.any(1))  # the box is one for the three channels
    share = hit[:, 0].float().mean((1, 2))
    assert abs(float((share > 0).float().mean()) - 0.75) < 4 * (0.75 * 0.25 / 200) ** 0.5
    assert share[share > 0].min() > 0.01
    assert 0.28 < share.max() < 0.37
    u = SampleKey(0, 0, torch.arange(200)).uniform(0, make.SLOTS)[:, make.Slot.ERASE_BOX :]
    u = u[:, : augment.CROP_SLOTS]
    boxes = randaugment.erase_boxes(u, 20, (0.02, 1 / 3), (0.3, 10 / 3))
    for mask, (top, left, height, width) in zip(hit[:, 0], boxes.tolist(), strict=True):
        assert mask.sum() in (0, height * width)
        assert mask.sum() == mask[top : top + height, left : left + width].sum()
    both = hit & hit_too  # nothing is drawn twice: not in another view, channel or image
    assert abs(np.corrcoef(one[both].numpy(), two[both].numpy())[0, 1]) < 0.05
    values = torch.cat([one[hit], two[hit_too]])
    assert len(values.unique()) > 0.98 * len(values)


def test_noise_shares_no_number_with_the_choices():
    at = SampleKey(0, 0, torch.arange(5000))
    noise, draws = (
        make.noise(at.index, at.stream(0, randomness.ERASE), 2 * make.SLOTS) ** 2,
        at.uniform(0, make.SLOTS),
    )
    for slot in range(make.SLOTS):
        assert abs(stats.spearmanr(noise[:, slot], draws[:, slot]).statistic) < 5 / 5000**0.5


@pytest.mark.parametrize("at", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)])
def test_noise_follows_from_all_coordinates(at):
    def noise(seed: int, epoch: int, index: int, view: int) -> torch.Tensor:
        stream = randomness.stream(randomness.ERASE, seed, epoch, view)
        return make.noise(torch.tensor([index]), stream, 75)

    assert noise(*at).shape == (1, 75)
    assert not (noise(*at) == noise(0, 0, 0, 0)).any()


def test_finetune_is_the_papers():
    for name, size, scale in (("finetune", 224, (0.08, 1)), ("finetune-small", 32, (0.35, 1))):
        (group,) = (validate(ViewGroup, g) for g in preset(name))
        assert (group.count, group.size, group.crop_scale, group.flip) == (1, size, scale, 0.5)
        strength = group.rand_augment, group.rand_magnitude, group.rand_magnitude_std
        assert strength == (2, 9.0, 0.5)
        assert (group.erase, group.erase_area) == (0.25, (0.02, 1 / 3))
        assert (group.jitter, group.grayscale, group.blur, group.solarize) == (0, 0, 0, 0)


def test_randaugment_precedes_colours_and_brings_in_the_mean():
    plain = {"size": 20, "crop_scale": (1, 1), "crop_ratio": (1, 1)}
    group = ViewGroup(**plain, rand_augment=4, rand_magnitude=10, rand_magnitude_std=0)
    x, at = pictures(300), SampleKey(0, 0, torch.arange(300))
    (view,) = make_views(x, [group], at, Normalization(MEAN, STD))
    filled = (view.abs() < 1e-5).all(1).float().mean((1, 2))  # the mean, normalised, is 0
    assert (filled > 0.1).sum() > 30
    (gray,) = make_views(
        x, [group.model_copy(update={"grayscale": 1.0})], at, Normalization((0,) * 3, (1,) * 3)
    )
    torch.testing.assert_close(gray[:, 0], gray[:, 2], rtol=0, atol=0)
    assert gray.min() >= 0
    assert gray.max() <= 1


def test_magnitude_and_count_of_operations_count():
    def change(**fields: float) -> float:
        group = FINETUNE.model_copy(update={"erase": 0.0, **fields})
        x, at = pictures(64), SampleKey(0, 0, torch.arange(64))
        none = make_views(
            x, [group.model_copy(update={"rand_augment": 0})], at, Normalization(MEAN, STD)
        )
        some = make_views(x, [group], at, Normalization(MEAN, STD))
        return float((torch.stack(some) != torch.stack(none)).any((2, 3, 4)).float().mean())

    for ops in (1, 2, 4):
        assert abs(change(rand_augment=ops) - (1 - 0.5**ops)) < 0.15
    still = change(rand_augment=1, rand_magnitude=0.0, rand_magnitude_std=0.0)
    assert still < change(rand_augment=1, rand_magnitude=0.0, rand_magnitude_std=3.0)


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
    with pytest.raises(UserError, match=r"erase_area=\[\.\.\., 1\.5\] is more than 1"):
        validate(ViewGroup, {"erase_area": [0.5, 1.5]})
    with pytest.raises(UserError, match="erase_ratio"):
        validate(ViewGroup, {"erase_ratio": [3, 0.3]})
    with pytest.raises(UserError, match=r"rotate90=0\.5: only of square views"):
        validate(ViewGroup, {"size": [8, 16], "rotate90": 0.5})
    with pytest.raises(UserError, match="rand_augment=5"):
        validate(ViewGroup, {"rand_augment": 5})
    with pytest.raises(UserError, match="rand_magnitude=11"):
        validate(ViewGroup, {"rand_magnitude": 11})


@pytest.mark.parametrize("size", [0, 5000, "wide", [3], [8, 0], [1, 2, 3]])
def test_a_size_is_a_side_or_two(size):
    with pytest.raises(UserError, match=r"^size=.*: give the side in pixels, or \[height, width\]"):
        validate(ViewGroup, {"size": size})


def test_two_equal_sides_are_one():
    assert validate(ViewGroup, {"size": [8, 8]}) == ViewGroup(size=8)
    assert validate(ViewGroup, {"size": [8, 16]}).tree()["size"] == [8, 16]
    assert "rotate90" not in ViewGroup(size=8).identity()


@pytest.mark.parametrize("channels", [1, 2, 4, 32])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_without_colours_for_every_method(name, channels):
    groups, _ = preset_for(name, channels)
    groups = [validate(ViewGroup, group) for group in groups]
    check_channels(groups, channels)
    usual = [validate(ViewGroup, group) for group in preset(name)]
    for a, b in zip(groups, usual, strict=True):
        assert (a.count, a.size, a.crop_scale) == (b.count, b.size, b.crop_scale)
    if not any(group.needs_rgb for group in usual):
        assert groups == usual
    elif channels == 1:
        assert all(group.jitter and not group.rotate90 for group in groups)
    else:
        assert all(group.rotate90 and group.gain for group in groups)
    assert preset_for(name, 3) == (preset(name), name)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"jitter": 0.8, "saturation": 0.4}, "saturation=0.4"),
        ({"jitter": 0.8, "hue": 0.1}, "hue=0.1"),
        ({"grayscale": 0.2}, "grayscale=0.2"),
        ({"rand_augment": 2}, "rand_augment=2"),
        ({"jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0}, None),
        ({"saturation": 0.4, "hue": 0.1, "gain": 0.1, "solarize": 0.5, "noise": 0.1}, None),
    ],
)
def test_colours_need_rgb(keys, named):
    groups = [ViewGroup(), ViewGroup(**keys)]
    check_channels(groups, 3)
    for channels, remedy in ((1, "gray"), (2, "multispectral"), (12, "multispectral")):
        if named is None:
            check_channels(groups, channels)
            continue
        with pytest.raises(
            ValueError, match=rf"^views\.1\.{named}: .*set views={remedy}, or views\.1\."
        ):
            check_channels(groups, channels)


def test_decoded_crops_are_mirrored_as_whole_images_are(tmp_path):
    """Flips come from the threads that decode, also for an image that replaces a broken one."""
    for i, image in enumerate(pictures(12)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i:02}.png")
    (tmp_path / "05.png").write_bytes(b"broken")
    plain = {"size": 20, "crop_scale": (1, 1), "crop_ratio": (1, 1)}
    groups = [ViewGroup(flip=0.5, count=2, **plain), ViewGroup(**plain)]
    views = []
    for in_memory in (True, False):
        data = DataConfig(path=str(tmp_path), in_memory=in_memory, max_bad=0.5, workers=2)
        source = open_source(data, "train")
        images = Images(source, data, torch.device("cpu"), BadImages(None, len(source), 0.5))
        loader = ViewLoader(
            images, groups, batch_size=12, seed=1, normalization=Normalization(MEAN, STD)
        )
        views.append([v for (batch,) in loader.steps(0, 3) for v in batch.views])
    for a, b in zip(*views, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-5)
    assert not torch.allclose(views[0][0], views[0][1])  # some images are mirrored in one view only
