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
from selfsight.views.recipe import PRESETS, ViewGroup, preset

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
EVERYTHING = ViewGroup(
    count=2, size=16, flip=0.5, affine=0.5, rotation=20, translation=0.1, zoom=(0.8, 1.2), shear=10,
    jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2, blur=0.5,
    solarize=0.2,
)  # fmt: skip

# Whole images, whose pixels are exact: RandAugment rounds to levels, where a last bit may decide.
FINETUNE = ViewGroup(
    count=2, size=20, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0.5, rand_augment=3, erase=0.5,
)  # fmt: skip


def pictures(n: int, size: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator).to(torch.uint8)


def views_of(rows: list[int], epoch: int = 0) -> list[torch.Tensor]:
    at = SampleKey(0, epoch, torch.tensor(rows))
    return make_views(pictures(64)[rows], [EVERYTHING, FINETUNE], at, Normalization(MEAN, STD))


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
    with pytest.raises(UserError, match="rand_augment=5"):
        validate(ViewGroup, {"rand_augment": 5})
    with pytest.raises(UserError, match="rand_magnitude=11"):
        validate(ViewGroup, {"rand_magnitude": 11})


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
