"""DINOv2, DINOv3 and distillation against plain transcriptions in float64, and their parts."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsight.errors import UserError
from selfsight.methods import METHODS
from selfsight.methods.dense import dense
from selfsight.methods.frozen import FrozenTeacher
from selfsight.methods.ibot import large_masks
from selfsight.methods.phi_s import PhiS, hadamard
from selfsight.testing import tiny_teacher
from tests.conftest import TinyEncoder, small_heads, tiny_vit
from tests.losses.test_losses import (
    naive_feature_distance,
    naive_gram_distance,
    naive_koleo,
    naive_queue_similarity,
    naive_sinkhorn,
)
from tests.methods.test_methods import batch_of
from tests.methods.test_replays import (
    average,
    batch_in_float64,
    build_on,
    class_or_mean,
    copies,
    cross_entropy,
    half_cosine,
    same,
    sgd,
    step,
    tokens_of,
    update,
)

# DINOv2 and DINOv3 --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "encoder", "centering", "separate"),
    [
        ("dinov2", "vit", "sinkhorn", True),
        ("dinov2", "class token", "softmax", True),
        ("dinov2", "class token", "sinkhorn", False),
        ("dinov3", "class token", "sinkhorn", True),
    ],
)
def test_dinov2_and_gram_anchoring_replay_their_papers(name, encoder, centering, separate):
    steps, lr, t_s, t_t, m = 8, 0.1, 0.1, 0.05, 0.8
    keys = {"momentum": 0.9, "center_momentum": m, "freeze_last_layer": 0.2, "patch_weight": 0.7}
    keys |= {"teacher_temperature": t_t, "final_teacher_temperature": t_t, "koleo_weight": 0.3}
    method = build_on(encoder, name, **keys, centering=centering, separate_heads=separate)
    method.teacher_temperature.fill_(t_t)  # which float32 rounded
    f_s, heads = copies(method.backbone, method.heads)
    f_t, slow = copies(f_s, heads)
    (gram,) = copies(f_s)
    mask_token = method.mask_token.detach().clone().requires_grad_()
    centers = [torch.zeros(16).double() for _ in range(2)]
    prefix = 1 if encoder == "class token" else 0
    for number in range(3):
        progress, batch = number / steps, batch_in_float64(name, 8, number)
        masks = large_masks(batch, f_s, 0.5, (0.1, 0.5)).chunk(2)
        student, patches, features, all_patches = [], [], [], []
        for x, mask in zip(batch.views[:2], masks, strict=True):
            tokens = tokens_of(f_s, x, mask, mask_token)
            features.append(class_or_mean(f_s, tokens))
            student.append(heads[0](features[-1]))
            patches.append(heads[-1](tokens[:, prefix:]))
            all_patches.append(tokens[:, prefix:])
        student += [heads[0](f_s(x)) for x in batch.views[2:]]
        with torch.no_grad():
            seen = [tokens_of(f_t, x) for x in batch.views[:2]]
            scores = [slow[0](class_or_mean(f_t, tokens)) for tokens in seen]
            patch_scores = torch.stack([slow[-1](tokens[:, prefix:]) for tokens in seen])
        masked = torch.stack(list(masks))
        if centering == "sinkhorn":  # over both views; of patches over the masked ones
            targets = naive_sinkhorn(torch.cat(scores), t_t, 3).chunk(2)
            wanted = naive_sinkhorn(patch_scores[masked], t_t, 3)
        else:
            targets = [F.softmax((x - centers[0]) / t_t, dim=-1) for x in scores]
            wanted = F.softmax((patch_scores[masked] - centers[1]) / t_t, dim=-1)
        pairs = [(i, v) for i in range(2) for v in range(len(student)) if v != i]
        loss = sum(cross_entropy(targets[i], student[v], t_s).mean() for i, v in pairs) / len(pairs)
        h = cross_entropy(wanted, torch.stack(patches)[masked], t_s)  # (M,)
        rows = masked.flatten(0, 1)
        place, per_image = 0, []
        for row in rows:  # image by image
            count = int(row.sum())
            per_image.append(h[place : place + count].mean() if count else h.sum() * 0)
            place += count
        loss = loss + 0.7 * torch.stack(per_image).mean()
        loss = loss + 0.3 * (naive_koleo(features[0]) + naive_koleo(features[1]))
        if name == "dinov3":
            with torch.no_grad():
                held = torch.cat([tokens_of(gram, x)[:, prefix:] for x in batch.views[:2]])
            loss = loss + 2.0 * naive_gram_distance(torch.cat(all_patches), held)
        loss.backward()
        if progress < 0.2:
            for head in heads:
                head[-1].weight.grad = None
        update([f_s, heads], lr)
        sgd([mask_token], lr)
        average([f_t, slow], [f_s, heads], half_cosine(0.9, progress))
        means = torch.cat(scores).mean(0), patch_scores[masked].mean(0)
        centers = [m * c + (1 - m) * x for c, x in zip(centers, means, strict=True)]

        assert step(method, batch, lr, progress) == pytest.approx(loss.item(), rel=1e-7)
        if centering == "softmax":
            for center, expected in zip(method.centers, centers, strict=True):
                torch.testing.assert_close(center.value, expected)
        torch.testing.assert_close(method.mask_token, mask_token, rtol=1e-6, atol=1e-8)
        # timm resizes positions for small views in float32
        ours = [method.backbone, method.heads, *method.teacher]
        same(ours, [f_s, heads, f_t, slow], 1e-7)
    if name == "dinov3":  # the Gram teacher is the encoder of the beginning
        same([method.gram_teacher.encoder], [gram])


def test_a_gram_teacher_of_another_kind_is_compared_on_the_students_grid():
    teacher = FrozenTeacher(timm.create_model("resnet18", num_classes=0), size=128)
    method = METHODS["dinov3"](
        tiny_vit(), METHODS["dinov3"].Config(**small_heads("dinov3")), teacher
    )
    method(batch_of("dinov3", 4)).loss.backward()
    assert "gram_teacher" not in " ".join(method.state_dict())


# Standardisation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4, 12, 20, 24, 192, 320, 384, 768, 1024, 1152, 1280, 1408])
def test_hadamard_matrices_of_the_widths_of_encoders(n):
    matrix = hadamard(n).double()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(matrix.abs(), torch.full((n, n), n**-0.5).double())


def test_a_width_without_a_hadamard_matrix_is_refused():
    with pytest.raises(UserError, match=r"a teacher of 100 features: .* method.standardise=false"):
        PhiS(100)  # 25 and 50 are no Paley widths; that of 100 = 99 + 1 needs a prime


@pytest.mark.parametrize("rank", [8, 3])
def test_phi_s_is_isotropic(rank):
    """Section 3 of arXiv 2410.01680: mean 0, variance 1 in each dimension, distances times one
    factor; also where the features have a lower rank."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(rank, 8, generator=generator).double()
    x = torch.randn(400, rank, generator=generator).double() ** 3 @ mix + 7
    standardise = PhiS(8).double()
    for part in x.split(150):
        standardise.add(part.view(-1, 2, 8)[:, :, :])
    standardise.fit()
    y = standardise(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(8).double(), rtol=0, atol=1e-8)
    torch.testing.assert_close(y.var(0, correction=0), torch.ones(8).double())
    ratio = torch.cdist(y[:20], y[:20]) / torch.cdist(x[:20], x[:20]).fill_diagonal_(1)
    off = ratio[~torch.eye(20, dtype=torch.bool)]
    alpha = math.sqrt(x.var(0, correction=0).mean().item())
    torch.testing.assert_close(off, torch.full_like(off, 1 / alpha))


# Distillation -------------------------------------------------------------------------------------

STUDENTS = {
    "vit": tiny_vit,
    "resnet": lambda: timm.create_model(
        "resnet18", num_classes=0, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16]
    ),
}


def distill(student: str = "vit", **keys) -> nn.Module:
    torch.manual_seed(0)
    cls = METHODS["distill"]
    config = cls.Config(**{**small_heads("distill"), **keys})
    return cls(STUDENTS[student](), config, **tiny_teacher()).train().double()


@pytest.mark.parametrize("student", STUDENTS)
def test_distillation_replays_am_radio_and_seed(student):
    keys = {"queue_weight": 0.5, "patch_weight": 0.7, "smooth_l1": 0.1, "queue_size": 48}
    method = distill(student, **keys, standardise_images=64)
    method.look([batch_in_float64("distill", step=s) for s in range(2)])
    f, image, patch = copies(method.backbone, method.image.head, method.patch.head)
    teacher = method.teacher.encoder
    means = [m.standardise.mean.clone() for m in (method.image, method.patch)]
    matrices = [m.standardise.matrix.clone() for m in (method.image, method.patch)]
    queue = [*method.queue.keys.clone()]
    for number in range(3):
        batch = batch_in_float64("distill", 8, number)
        (x,) = batch.views
        with torch.no_grad():
            tokens = teacher.forward_features(x)  # (B, 16, 24), of a grid of 4 x 4
            wanted = torch.stack([matrices[0] @ (h - means[0]) for h in teacher(x)])
            places = torch.stack(
                [torch.stack([matrices[1] @ (t - means[1]) for t in row]) for row in tokens]
            )
        maps = f.forward_features(x)
        if student == "vit":
            h, found = f(x), patch(maps)
        else:  # one place, which is repeated for all of the teacher's
            h, found = f(x), patch(maps.flatten(2).mT).expand(-1, 16, -1)
        p = image(h)
        loss = naive_feature_distance(p, wanted, 0.0)
        loss = loss + 0.7 * naive_feature_distance(found, places, 0.1)
        keys = torch.stack(queue)
        loss = loss + 0.5 * naive_queue_similarity(p, wanted, keys, 0.2, 0.01)
        loss.backward()
        update([f, image, patch], 0.1)
        queue = [*queue, *F.normalize(wanted, dim=1)][-48:]
        found = step(method, batch, 0.1, number / 4)
        assert found == pytest.approx(loss.item(), rel=1e-7)
        same([method.backbone, method.image.head, method.patch.head], [f, image, patch], 1e-7)
        held = {tuple(row.tolist()) for row in method.queue.keys.float()}
        assert all(tuple(row.tolist()) in held for row in map(Tensor.float, queue))


def test_a_frozen_teacher_is_no_part_of_the_method():
    method = distill()
    before = copy.deepcopy(method.teacher.encoder.state_dict())
    step(method, batch_in_float64("distill"), 0.1, 0.0)
    method.train()
    assert not method.teacher.encoder.training
    assert not any("teacher" in name for name in method.state_dict())
    assert not any("teacher" in name for name, _ in method.named_parameters())
    after = method.teacher.encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert next(method.teacher.encoder.parameters()).dtype == torch.float64  # it moves along


def test_a_teacher_sees_views_in_its_own_size_and_colours():
    encoder = tiny_vit(32).double()
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    mine, my_std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    scale, shift = std / my_std, (mean - mine) / my_std
    teacher = FrozenTeacher(encoder, 32, tuple(scale.tolist()), tuple(shift.tolist())).double()
    pixels = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    x = (pixels - mean[:, None, None]) / std[:, None, None]
    larger = F.interpolate(pixels, (32, 32), mode="bicubic", antialias=True)
    expected = encoder.eval()((larger - mine[:, None, None]) / my_std[:, None, None])
    torch.testing.assert_close(teacher(x).image, expected, rtol=1e-5, atol=1e-6)
    assert teacher(x).grid == (8, 8)


def test_cached_features_are_computed_once_and_equal():
    calls = []
    encoder = tiny_vit()
    plain, cached = FrozenTeacher(encoder), FrozenTeacher(encoder, cache=True)
    hook = encoder.patch_embed.register_forward_hook(lambda m, i, o: calls.append(len(o)))
    x, index = torch.randn(6, 3, 16, 16), torch.tensor([4, 7, 1, 0, 9, 2])
    first = cached.of(x[:4], index[:4], 0)
    again = cached.of(x[1:], index[1:], 0)
    other_view = cached.of(x[1:] + 1, index[1:], 1)
    assert calls == [4, 2, 5]
    hook.remove()
    expected = plain(x)
    for part in (0, 1):
        torch.testing.assert_close(first[part], expected[part][:4])
        torch.testing.assert_close(again[part], expected[part][1:])
    assert first.grid == again.grid == expected.grid
    assert not torch.allclose(other_view.image, again.image)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("resnet18", {}, 128),
        ("mobilenetv3_small_050", {}, 128),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "depths": [1] * 4}, 64),
        ("vit_small_patch16_dinov3", {"depth": 1}, 64),
        ("deit_tiny_distilled_patch16_224", {"depth": 1, "img_size": 64}, 64),
        ("convnext_atto", {}, 128),
    ],
)
def test_dense_features_of_timms_models(name, options, size):
    backbone = timm.create_model(name, num_classes=0, **options).eval()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        found = dense(backbone, x)
        torch.testing.assert_close(found.image, backbone(x))
        assert found.places.shape[:2] == (2, found.grid[0] * found.grid[1])
        # a patch is where it says: a change of the lower left moves that place the most
        side = size // found.grid[0]
        x[:, :, -side:, :side] += 3
        moved = (dense(backbone, x).places - found.places).norm(dim=2)[0]
    rows, columns = found.grid
    assert rows == columns
    assert moved.argmax() == (rows - 1) * columns


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda cls: cls(tiny_vit()), "teacher.weights=null: distill needs one"),
        (
            lambda cls: cls(TinyEncoder(), cls.Config(), **tiny_teacher()),
            "the student gives no features of patches; set method.patch_weight=0",
        ),
        (
            lambda cls: cls(
                tiny_vit(), None, FrozenTeacher(TinyEncoder()), torch.zeros(1, 3, 16, 16)
            ),
            "the teacher gives no features of patches; set method.patch_weight=0",
        ),
    ],
)
def test_what_cannot_be_distilled(make, says):
    with pytest.raises(UserError, match=says):
        make(METHODS["distill"])


@pytest.mark.parametrize(
    ("name", "key", "bounds"),
    [
        ("ibot", "mask_ratio", (0.5, 0.1)),
        ("dinov2", "mask_ratio", (0.5, 1.5)),
        ("ijepa", "target_scale", (-0.1, 0.2)),
        ("ijepa", "context_scale", (0.9, 0.8)),
        ("ijepa", "target_ratio", (0.0, 1.0)),
    ],
)
def test_bounds_of_masks_are_in_order(name, key, bounds):
    """They were taken as they were: more patches than there are, or a ratio of 0."""
    with pytest.raises(ValueError, match="give the lowest, then the highest"):
        METHODS[name].Config(**{key: bounds})
