"""Losses against stored reference values and against the papers' formulas as float64 loops."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from selfsight import losses
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden"
WAITING = ("tico/beta=0.9,rho=8.0,first_step",)  # reference values without a loss as yet


# Stored reference values --------------------------------------------------------------------------


def swav(*scores: Tensor) -> Tensor:
    targets = [losses.sinkhorn(s.detach(), 0.05, 3) for s in scores[:2]]
    return losses.swapped_prediction([*scores], targets, 0.1)


def dino(x: SimpleNamespace) -> Tensor:
    center = torch.zeros_like(x.teacher0[0])
    targets = [losses.centred_softmax(t, center, 0.04) for t in (x.teacher0, x.teacher1)]
    return losses.swapped_prediction([x.student0, x.student1, x.student2], targets, 0.1)


def moco_v3(x: SimpleNamespace) -> Tensor:
    terms = losses.batch_info_nce(x.q1, x.k2, 0.2) + losses.batch_info_nce(x.q2, x.k1, 0.2)
    return 2 * 0.2 * terms


# the key, the inputs whose gradients are compared, the loss
GOLDEN_CASES = {
    "nt_xent/temperature=0.07": ("z1 z2", lambda x: losses.nt_xent(x.z1, x.z2, 0.07)),
    "nt_xent/temperature=0.2": ("z1 z2", lambda x: losses.nt_xent(x.z1, x.z2, 0.2)),
    "nt_xent/temperature=0.5": ("z1 z2", lambda x: losses.nt_xent(x.z1, x.z2, 0.5)),
    # the reference lets a gradient reach the keys; ours stops it, so only that of q is compared
    "info_nce/queue,temperature=0.07": ("z1", lambda x: losses.info_nce(x.z1, x.z2, x.queue, 0.07)),
    "info_nce/queue,temperature=0.2": ("z1", lambda x: losses.info_nce(x.z1, x.z2, x.queue, 0.2)),
    "negative_cosine": ("z1 z2", lambda x: losses.negative_cosine(x.z1, x.z2)),
    "dcl/temperature=0.1": ("z1 z2", lambda x: losses.dcl(x.z1, x.z2, 0.1)),
    "dcl/temperature=0.5": ("z1 z2", lambda x: losses.dcl(x.z1, x.z2, 0.5)),
    "dclw/temperature=0.1,sigma=0.5": ("z1 z2", lambda x: losses.dcl(x.z1, x.z2, 0.1, 0.5)),
    "barlow_twins/off_diagonal_weight=0.005": (
        "z1 z2",
        lambda x: losses.barlow_twins(x.z1, x.z2, 0.005),
    ),
    "vicreg/invariance=25,variance=25,covariance=1": (
        "z1 z2",
        lambda x: losses.vicreg(x.z1, x.z2, 25, 25, 1),
    ),
    "supcon/temperature=0.1": ("z1 z2", lambda x: losses.sup_con(x.z1, x.z2, x.labels, 0.1)),
    "moco_v3/temperature=0.2": ("q1 q2", moco_v3),
    "swav/2_global,temperature=0.1,epsilon=0.05,iterations=3": (
        "scores0 scores1",
        lambda x: swav(x.scores0, x.scores1),
    ),
    "swav/2_global+1_local,temperature=0.1,epsilon=0.05,iterations=3": (
        "scores0 scores1 scores2",
        lambda x: swav(x.scores0, x.scores1, x.scores2),
    ),
    "dino/zero_center,teacher_temperature=0.04,student_temperature=0.1": (
        "student0 student1 student2",
        dino,
    ),
    "koleo": ("z1", lambda x: losses.koleo(x.z1)),
    "mae/norm_pix=False": (
        "mae_pred",
        lambda x: losses.mae(x.mae_pred, x.mae_target, x.mae_mask.bool(), False),
    ),
    "mae/norm_pix=True": (
        "mae_pred",
        lambda x: losses.mae(x.mae_pred, x.mae_target, x.mae_mask.bool(), True),
    ),
}


def golden(name: str):
    if name.endswith(".json"):
        return json.loads((GOLDEN / name).read_text())
    with np.load(GOLDEN / name) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("key", GOLDEN_CASES)
def test_golden(key, dtype):
    names, loss = GOLDEN_CASES[key]
    expected, inputs = golden("losses.json")[key], golden("losses.npz")
    x = SimpleNamespace(
        **{k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    )
    wanted = [getattr(x, name).requires_grad_() for name in names.split()]
    value = loss(x)
    value.backward()
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    assert value.item() == pytest.approx(expected["value"], rel=tolerance)
    norms = [z.grad.norm().item() for z in wanted]
    assert norms == pytest.approx(expected["grad_norms"][: len(norms)], rel=tolerance)


def test_every_reference_value_is_compared():
    assert set(golden("losses.json")) - set(WAITING) == set(GOLDEN_CASES)


# The papers' formulas, one sample at a time -------------------------------------------------------


def unit(z: Tensor) -> list[Tensor]:
    return [row / row.norm() for row in z]


def naive_nt_xent(z1: Tensor, z2: Tensor, t: float) -> Tensor:
    z, n = unit(torch.cat([z1, z2])), len(z1)
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        others = [torch.exp(z[i] @ z[k] / t) for k in range(2 * n) if k != i]
        total = total - torch.log(torch.exp(z[i] @ z[j] / t) / sum(others))
    return total / (2 * n)


def naive_info_nce(q, k, queue, t) -> Tensor:
    total = 0.0
    for a, b in zip(unit(q), unit(k), strict=True):
        positive = torch.exp(a @ b / t)
        total = total - torch.log(positive / (positive + sum(torch.exp(a @ n / t) for n in queue)))
    return total / len(q)


def naive_batch_info_nce(a, k, t) -> Tensor:
    a, k = unit(a), unit(k)
    total = 0.0
    for i in range(len(a)):
        total = total - torch.log(
            torch.exp(a[i] @ k[i] / t) / sum(torch.exp(a[i] @ other / t) for other in k)
        )
    return total / len(a)


def naive_negative_cosine(p, z) -> Tensor:
    return sum(-(a @ b) / (a.norm() * b.norm()) for a, b in zip(p, z, strict=True)) / len(p)


def naive_dcl(z1, z2, t, sigma=None) -> Tensor:
    """Eq. 6 and 7; the weights are constants, as in the reference values."""
    z, n = (unit(z1), unit(z2)), len(z1)
    density = [1.0] * n
    if sigma is not None:
        density = [math.exp((z[0][i] @ z[1][i]).item() / sigma) for i in range(n)]
    total = 0.0
    for k in range(2):
        for i in range(n):
            w = 2 - density[i] / (sum(density) / n)
            u = sum(torch.exp(z[k][i] @ z[m][j] / t) for m in range(2) for j in range(n) if j != i)
            total = total - w * (z[0][i] @ z[1][i]) / t + torch.log(u)
    return total / (2 * n)


def naive_sup_con(z1, z2, labels, t) -> Tensor:
    z, y = unit(torch.cat([z1, z2])), labels.tolist() * 2
    everything = range(len(z))
    total = 0.0
    for i in everything:
        others = [a for a in everything if a != i]
        positives = [p for p in others if y[p] == y[i]]
        denominator = sum(torch.exp(z[i] @ z[a] / t) for a in others)
        terms = [torch.log(torch.exp(z[i] @ z[p] / t) / denominator) for p in positives]
        total = total - sum(terms) / len(positives)
    return total / len(z)


def naive_barlow_twins(z1, z2, weight) -> Tensor:
    """Eq. 1 and 2, entry by entry; the epsilon under the root is batch normalisation's."""
    n, d = z1.shape
    a, b = z1 - sum(z1) / n, z2 - sum(z2) / n
    total = 0.0
    for i in range(d):
        for j in range(d):
            spread = (sum(a[:, i] ** 2) / n + 1e-5) * (sum(b[:, j] ** 2) / n + 1e-5)
            c = sum(a[s, i] * b[s, j] for s in range(n)) / n / spread.sqrt()
            total = total + ((1 - c) ** 2 if i == j else weight * c**2)
    return total


def naive_vicreg(z1, z2, invariance, variance, covariance) -> Tensor:
    """Eq. 1 to 6, where the code has halves of v and divides s by d."""
    n, d = z1.shape
    s = sum((a - b) @ (a - b) for a, b in zip(z1, z2, strict=True)) / n / d
    loss = invariance * s
    for z in (z1, z2):
        mean = sum(z) / n
        matrix = sum(torch.outer(row - mean, row - mean) for row in z) / (n - 1)
        v = sum(torch.relu(1 - torch.sqrt(matrix[j, j] + 1e-4)) for j in range(d)) / d
        c = sum(matrix[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
        loss = loss + variance * v / 2 + covariance * c
    return loss


def naive_sigreg(z, directions, knots, t_max=5.0) -> Tensor:
    """Algorithm 1: the whole interval, complex numbers, one point at a time."""
    n, total = len(z), 0.0
    points = [-t_max + 2 * t_max * k / (knots - 1) for k in range(knots)]
    for a in directions.T:
        errors = []
        for t in points:
            phi = sum(torch.exp(1j * t * (row @ a)) for row in z) / n
            gauss = math.exp(-(t**2) / 2)
            errors.append((phi - gauss).abs() ** 2 * gauss)
        step = 2 * t_max / (knots - 1)
        total = total + n * step * sum((x + y) / 2 for x, y in pairwise(errors))
    return total / directions.shape[1]


def naive_sinkhorn(scores, epsilon, iterations) -> Tensor:
    """Rows of Q to 1/K and columns to 1/B in turn, as in the listing of appendix A."""
    q = (scores / epsilon).exp().T  # (K, B)
    q = q / q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q = torch.stack([row / row.sum() / k for row in q])
        q = torch.stack([column / column.sum() / b for column in q.T]).T
    return torch.stack([column / column.sum() for column in q.T])


def naive_swapped_prediction(logits, targets, t) -> Tensor:
    terms = []
    for i, target in enumerate(targets):
        for v, x in enumerate(logits):
            if v == i:
                continue
            for row, wanted in zip(x, target, strict=True):
                p = torch.exp(row / t) / torch.exp(row / t).sum()
                terms.append(-sum(q * torch.log(y) for q, y in zip(wanted, p, strict=True)))
    return sum(terms) / len(terms)


def naive_centred_softmax(logits, center, t) -> Tensor:
    rows = [torch.exp((row - center) / t) for row in logits]
    return torch.stack([row / row.sum() for row in rows])


def naive_mae(prediction, target, mask, norm_pix) -> Tensor:
    errors = []
    for b, n in mask.nonzero().tolist():
        y = target[b, n]
        if norm_pix:
            mean = sum(y) / len(y)
            variance = sum((v - mean) ** 2 for v in y) / (len(y) - 1)
            y = (y - mean) / (variance + 1e-6) ** 0.5
        errors += list((prediction[b, n] - y) ** 2)
    return sum(errors) / len(errors)


def naive_simmim(prediction, target, mask) -> Tensor:
    errors = []
    for b, n in mask.nonzero().tolist():
        errors += list((prediction[b, n] - target[b, n]).abs())
    return sum(errors) / len(errors)


def naive_masked_smooth_l1(prediction, target, mask) -> Tensor:
    blocks = []
    for b in range(len(mask)):
        errors = []
        for n in mask[b].nonzero().flatten():
            for x in prediction[b, n] - target[b, n]:
                errors.append(0.5 * x**2 if x.abs() < 1 else x.abs() - 0.5)
        blocks.append(sum(errors) / len(errors))
    return sum(blocks) / len(blocks)


def naive_masked_cross_entropy(logits, targets, mask, t) -> Tensor:
    total = 0.0
    for b in range(len(mask)):
        at = mask[b].nonzero().flatten().tolist()
        for n in at:
            p = torch.exp(logits[b, n] / t)
            total = total - (targets[b, n] * torch.log(p / p.sum())).sum() / len(at)
    return total / len(mask)


def naive_weighted_cross_entropy(logits, targets, weights, t) -> Tensor:
    total = 0.0
    for x, target, weight in zip(logits, targets, weights, strict=True):
        p = torch.exp(x / t)
        total = total - weight * (target * torch.log(p / p.sum())).sum()
    return total


def naive_koleo(z) -> Tensor:
    z, total = unit(z), 0.0
    for i, row in enumerate(z):
        distances = [((row - x + 1e-8) ** 2).sum() ** 0.5 for j, x in enumerate(z) if j != i]
        total = total - torch.log(min(distances) + 1e-8)
    return total / len(z)


def naive_feature_distance(p, y, beta) -> Tensor:
    total = 0.0
    for a, b in zip(p.flatten(0, -2), y.flatten(0, -2), strict=True):
        cosine = a @ b / (a.norm() * b.norm())
        l1 = [0.5 * x**2 if x.abs() < 1 else x.abs() - 0.5 for x in a - b]
        total = total + (1 - beta) * (1 - cosine) + beta * sum(l1) / len(l1)
    return total / p[..., 0].numel()


def naive_queue_similarity(p, y, queue, t_s, t_t) -> Tensor:
    total = 0.0
    for a, b in zip(unit(p), unit(y), strict=True):
        keys = [b, *queue]
        wanted = torch.stack([torch.exp(b @ d / t_t) for d in keys])
        found = torch.stack([torch.exp(a @ d / t_s) for d in keys])
        total = total - ((wanted / wanted.sum()) * torch.log(found / found.sum())).sum()
    return total / len(p)


def naive_gram_distance(x, y) -> Tensor:
    errors = []
    for a, b in zip(x, y, strict=True):
        a, b = unit(a), unit(b)
        errors += [(a[i] @ a[j] - b[i] @ b[j]) ** 2 for i in range(len(a)) for j in range(len(a))]
    return sum(errors) / len(errors)


def naive_centre_distance(views, large) -> Tensor:
    total, (n, d) = 0.0, views[0].shape
    for i in range(n):
        for j in range(d):
            center = sum(views[v][i, j] for v in range(large)) / large
            total = total + sum((z[i, j] - center) ** 2 for z in views)
    return total / (len(views) * n * d)


# Both, in value and gradient ----------------------------------------------------------------------


def compare(ours: Callable, naive: Callable, *inputs: Tensor) -> None:
    """Value and the gradient of every input that requires one."""
    a, b = ours(*inputs), naive(*inputs)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    wanted = [x for x in inputs if x.requires_grad]
    if not wanted:
        return
    for mine, theirs in zip(
        torch.autograd.grad(a, wanted), torch.autograd.grad(b, wanted), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-12)


class Draw:
    """Float64 inputs that follow from a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, grad: bool = True) -> Tensor:
        x = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return x.requires_grad_(grad)

    def mask(self, rows: int, columns: int, least: int = 1) -> Tensor:
        """(rows, columns) bool, at least so many of each row, not as many in all."""
        order = torch.rand(rows, columns, generator=self.generator).argsort(1)
        count = torch.randint(least, columns + 1, (rows, 1), generator=self.generator)
        return order < count


seeds = st.integers(0, 10**6)
temperatures = st.floats(0.05, 2.0)
rows, width = st.integers(2, 6), st.integers(2, 8)
oracle = settings(max_examples=25, deadline=None)


@given(rows, width, temperatures, seeds)
@oracle
def test_contrastive_losses_are_the_papers(n, d, t, seed):
    draw = Draw(seed)
    z1, z2, keys = draw(n, d), draw(n, d), F.normalize(draw(7, d, grad=False), dim=1)
    fixed = z2.detach()
    compare(
        lambda q: losses.info_nce(q, fixed, keys, t),
        lambda q: naive_info_nce(q, fixed, keys, t),
        z1,
    )
    compare(lambda a, b: losses.nt_xent(a, b, t), lambda a, b: naive_nt_xent(a, b, t), z1, z2)
    compare(
        lambda a, b: losses.batch_info_nce(a, b, t),
        lambda a, b: naive_batch_info_nce(a, b, t),
        z1,
        z2,
    )
    compare(losses.negative_cosine, naive_negative_cosine, z1, z2)


@given(rows, width, temperatures, st.none() | st.floats(0.1, 2.0), seeds)
@oracle
def test_dcl_is_the_papers(n, d, t, sigma, seed):
    draw = Draw(seed)
    compare(
        lambda a, b: losses.dcl(a, b, t, sigma),
        lambda a, b: naive_dcl(a, b, t, sigma),
        draw(n, d),
        draw(n, d),
    )


@given(rows, width, temperatures, st.integers(1, 4), seeds)
@oracle
def test_sup_con_is_the_papers(n, d, t, classes, seed):
    draw = Draw(seed)
    labels = torch.randint(classes, (n,), generator=draw.generator)
    compare(
        lambda a, b: losses.sup_con(a, b, labels, t),
        lambda a, b: naive_sup_con(a, b, labels, t),
        draw(n, d),
        draw(n, d),
    )


# narrow: the matrix of features is formed; wide: that of samples, which is smaller
shapes = st.one_of(
    st.tuples(st.integers(3, 7), st.integers(2, 6)), st.tuples(st.just(3), st.integers(7, 9))
)


@given(shapes, st.floats(0.001, 2.0), seeds)
@oracle
def test_barlow_twins_is_the_papers(shape, weight, seed):
    draw = Draw(seed)
    compare(
        lambda a, b: losses.barlow_twins(a, b, weight),
        lambda a, b: naive_barlow_twins(a, b, weight),
        draw(*shape),
        draw(*shape),
    )


@given(shapes, st.tuples(*[st.floats(0.1, 30.0)] * 3), seeds)
@oracle
def test_vicreg_is_the_papers(shape, weights, seed):
    draw = Draw(seed)
    compare(
        lambda a, b: losses.vicreg(a, b, *weights),
        lambda a, b: naive_vicreg(a, b, *weights),
        draw(*shape),
        draw(*shape),
    )


@pytest.mark.parametrize(("n", "d", "shape"), [(4, 8, (8, 8)), (4, 9, (4, 4)), (12, 8, (8, 8))])
def test_correlations_take_the_smaller_of_two_matrices(n, d, shape):
    """Both ways of summing squares are reached: by the sizes of what is computed."""
    draw, seen = Draw(0), Sizes()
    with seen:
        losses.barlow_twins(draw(n, d), draw(n, d), 0.1)
    assert set(seen.products) == {shape}


ends = st.sampled_from([3.0, 5.0])


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([3, 5, 17]), ends, seeds)
@oracle
def test_sigreg_is_the_papers(n, d, knots, t_max, seed):
    draw = Draw(seed)
    directions = F.normalize(draw(d, 3, grad=False), dim=0)
    compare(
        lambda z: losses.sigreg(z, directions, knots, t_max),
        lambda z: naive_sigreg(z, directions, knots, t_max),
        draw(n, d),
    )


@given(rows, width, st.floats(0.03, 1.0), st.integers(1, 5), seeds)
@oracle
def test_sinkhorn_is_the_papers(n, k, epsilon, iterations, seed):
    scores = Draw(seed)(n, k, grad=False).tanh()
    compare(
        lambda s: losses.sinkhorn(s, epsilon, iterations),
        lambda s: naive_sinkhorn(s, epsilon, iterations),
        scores,
    )


@given(st.integers(1, 4), width, st.integers(2, 4), temperatures, seeds)
@oracle
def test_swapped_prediction_is_the_papers(n, k, views, t, seed):
    draw = Draw(seed)
    targets = [draw(n, k, grad=False).softmax(1) for _ in range(2)]
    compare(
        lambda *x: losses.swapped_prediction([*x], targets, t),
        lambda *x: naive_swapped_prediction(x, targets, t),
        *(draw(n, k) for _ in range(views)),
    )
    compare(
        lambda x: losses.centred_softmax(x, targets[0][0], t),
        lambda x: naive_centred_softmax(x, targets[0][0], t),
        draw(n, k, grad=False),
    )


@given(st.integers(1, 3), st.integers(1, 5), st.integers(2, 5), st.booleans(), seeds)
@oracle
def test_losses_on_pixels_are_the_papers(n, patches, pixels, norm_pix, seed):
    draw = Draw(seed)
    prediction, target = draw(n, patches, pixels), draw(n, patches, pixels, grad=False)
    mask = draw.mask(n, patches)
    compare(
        lambda p: losses.mae(p, target, mask, norm_pix),
        lambda p: naive_mae(p, target, mask, norm_pix),
        prediction,
    )
    compare(
        lambda p: losses.simmim(p, target, mask),
        lambda p: naive_simmim(p, target, mask),
        prediction,
    )


@given(st.integers(1, 3), st.integers(1, 5), st.integers(2, 5), temperatures, seeds)
@oracle
def test_losses_on_features_of_patches_are_the_papers(n, patches, d, t, seed):
    draw = Draw(seed)
    prediction, target = draw(n, patches, d), 2 * draw(n, patches, d, grad=False)
    mask, perhaps = draw.mask(n, patches), draw.mask(n, patches, least=0)
    compare(
        lambda p: losses.masked_smooth_l1(p, target, mask),
        lambda p: naive_masked_smooth_l1(p, target, mask),
        prediction,
    )
    if perhaps.any():
        compare(
            lambda p: losses.masked_cross_entropy(p, target.softmax(-1), perhaps, t),
            lambda p: naive_masked_cross_entropy(p, target.softmax(-1), perhaps, t),
            prediction,
        )


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), seeds)
@oracle
def test_centre_distance_is_the_papers(n, d, large, small, seed):
    draw = Draw(seed)
    compare(
        lambda *z: losses.centre_distance([*z], large),
        lambda *z: naive_centre_distance(z, large),
        *(draw(n, d) for _ in range(large + small)),
    )


@given(st.integers(2, 6), st.integers(2, 5), temperatures, st.floats(0, 1), seeds)
@oracle
def test_losses_of_foundation_models_are_the_papers(n, d, t, beta, seed):
    """DINOv2's, DINOv3's and of their distillation."""
    draw = Draw(seed)
    p, y, queue = draw(n, d), draw(n, d, grad=False), F.normalize(draw(7, d, grad=False), dim=1)
    weights = draw(n, grad=False).abs()
    compare(losses.koleo, naive_koleo, p)
    for name, rest in {
        "feature_distance": (y, beta),
        "queue_similarity": (y, queue, t, 0.5 * t),
        "weighted_cross_entropy": (y.softmax(-1), weights, t),
    }.items():
        ours, naive = getattr(losses, name), globals()[f"naive_{name}"]
        compare(lambda x, f=ours, r=rest: f(x, *r), lambda x, f=naive, r=rest: f(x, *r), p)
    patches, theirs = draw(2, n, d), draw(2, n, d + 1, grad=False)
    compare(
        lambda x: losses.gram_distance(x, theirs),
        lambda x: naive_gram_distance(x, theirs),
        patches,
    )
    compare(
        lambda x: losses.feature_distance(x, patches.detach().flip(0), beta),
        lambda x: naive_feature_distance(x, patches.detach().flip(0), beta),
        patches,
    )


def test_masked_patches_alone_give_the_loss_of_the_whole_views():
    draw = Draw(0)
    x, y, mask = draw(4, 6, 5), draw(4, 6, 5, grad=False).softmax(-1), draw.mask(4, 6, least=0)
    weights = mask / (len(mask) * mask.sum(1, keepdim=True).clamp_min(1))
    alone = losses.weighted_cross_entropy(x[mask], y[mask], weights[mask], 0.1)
    torch.testing.assert_close(alone, losses.masked_cross_entropy(x, y, mask, 0.1))


def test_sinkhorn_of_no_samples_is_empty():
    assert losses.sinkhorn(torch.zeros(0, 5), 0.1, 3).shape == (0, 5)


# Gradients that are stopped -----------------------------------------------------------------------


def test_no_gradient_reaches_keys_and_targets():
    x, y, queue = torch.randn(4, 8), torch.randn(4, 8, requires_grad=True), torch.randn(6, 8)
    assert not losses.info_nce(x, y, queue, 0.2).requires_grad
    assert not losses.swapped_prediction([x, x], [y, y], 0.2).requires_grad
    assert not losses.sinkhorn(y, 0.05, 3).requires_grad
    assert not losses.centred_softmax(y, queue[0], 0.05).requires_grad


# Memory of the contrast ---------------------------------------------------------------------------


class Sizes(TorchDispatchMode):
    """The largest tensor that any operation gives back, and the shapes of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.products = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        if function.overloadpacket == torch.ops.aten.mm:
            self.products.append(tuple(result.shape))
        return result


@pytest.mark.parametrize("block", [1, 10, 33, 59, 10**6])
def test_blocks_do_not_change_the_contrast(block, monkeypatch):
    """Blocks of one anchor, of some with a shorter last one, and of all."""
    monkeypatch.setattr("selfsight.losses.contrast.BLOCK", block)
    draw = Draw(block)
    a, b = draw(5, 6), draw(5, 6)
    compare(lambda a, b: losses.nt_xent(a, b, 0.2), lambda a, b: naive_nt_xent(a, b, 0.2), a, b)
    compare(
        lambda a, b: losses.batch_info_nce(a, b, 0.2),
        lambda a, b: naive_batch_info_nce(a, b, 0.2),
        a,
        b,
    )


@pytest.mark.parametrize("block", [512, 1024, 10**6])
def test_memory_of_nt_xent_is_bounded(block, monkeypatch):
    """No tensor has more elements than a block, forward and backward, unless the block has all."""
    monkeypatch.setattr("selfsight.losses.contrast.BLOCK", block)
    draw, sizes = Draw(0), Sizes()
    a, b = draw(32, 4), draw(32, 4)
    with sizes:
        losses.nt_xent(a, b, 0.2).backward()
    assert sizes.largest == min(block, 64 * 64)


# Precision ----------------------------------------------------------------------------------------


def examples() -> dict[str, tuple]:
    """Arguments for each loss."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    a, b, c = draw(8, 16), draw(8, 16), draw(8, 16)
    queue, q = F.normalize(draw(24, 16), dim=1), draw(8, 16).softmax(1)
    x, y, mask = draw(2, 6, 5), draw(2, 6, 5), torch.rand(2, 6, generator=generator) < 0.5
    return {
        "nt_xent": (a, b, 0.1),
        "info_nce": (a, b, queue, 0.1),
        "batch_info_nce": (a, b, 0.1),
        "dcl": (a, b, 0.1, 0.5),
        "sup_con": (a, b, torch.arange(8) % 3, 0.1),
        "negative_cosine": (a, b),
        "barlow_twins": (a, b, 0.005),
        "vicreg": (a, b, 25.0, 25.0, 1.0),
        "koleo": (a,),
        "feature_distance": (a, b, 0.1),
        "queue_similarity": (a, b, queue, 0.2, 0.01),
        "gram_distance": (x, y),
        "weighted_cross_entropy": (a, q, q[:, 0], 0.1),
        "sigreg": (a, F.normalize(queue.T, dim=0)),
        "centre_distance": ([a, b, c], 2),
        "sinkhorn": (a, 0.5, 3),
        "swapped_prediction": ([a, b, c], [q, q.flip(0)], 0.1),
        "centred_softmax": (a, queue[0], 0.04),
        "mae": (x, y, mask, True),
        "simmim": (x, y, mask),
        "masked_smooth_l1": (x, y, mask),
        "masked_cross_entropy": (x, y.softmax(-1), mask, 0.1),
    }


def cast(arguments: tuple, dtype: torch.dtype) -> tuple:
    """Floating tensors, also those in lists, in another type."""

    def one(x):
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return tree_map(one, arguments)


@pytest.mark.parametrize("name", losses.__all__)
def test_full_precision_under_autocast(name):
    loss, arguments = getattr(losses, name), examples()[name]
    half = cast(arguments, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        inside, from_half = loss(*arguments), loss(*half)
    assert torch.equal(inside, loss(*arguments))
    assert torch.equal(from_half, loss(*cast(half, torch.float32)))
    assert from_half.dtype == torch.float32
    assert loss(*cast(arguments, torch.float64)).dtype == torch.float64


# Values that are known without computing ----------------------------------------------------------


def test_equal_embeddings_give_the_log_of_the_number_of_choices():
    z, classes = torch.ones(5, 3), torch.arange(5) % 2
    key = F.normalize(torch.ones(7, 3), dim=1)
    assert float(losses.nt_xent(z, z, 0.5)) == pytest.approx(math.log(9), rel=1e-6)
    assert float(losses.sup_con(z, z, classes, 0.5)) == pytest.approx(math.log(9), rel=1e-6)
    assert float(losses.info_nce(z, z, key, 0.5)) == pytest.approx(math.log(8), rel=1e-6)
    assert float(losses.batch_info_nce(z, z, 0.5)) == pytest.approx(math.log(5), rel=1e-6)
    # the positive's attraction takes 1 / T away from the log of the 8 other views
    assert float(losses.dcl(z, z, 0.5)) == pytest.approx(math.log(8), rel=1e-6)
    assert float(losses.dcl(z, z, 0.5, 0.5)) == pytest.approx(math.log(8), rel=1e-6)
    assert float(losses.negative_cosine(z, 2 * z)) == pytest.approx(-1, rel=1e-6)


def test_cross_entropy_of_uniform_predictions_is_log_k_and_at_best_the_targets_entropy():
    flat, target = torch.zeros(4, 6), torch.randn(4, 6).softmax(1)
    uniform = losses.swapped_prediction([flat, flat], [target, target], 0.1)
    assert float(uniform) == pytest.approx(math.log(6), rel=1e-6)
    best = losses.swapped_prediction([target.log() * 0.1] * 3, [target, target], 0.1)
    assert float(best) == pytest.approx(-float((target * target.log()).sum(1).mean()), rel=1e-5)
    mask = torch.tensor([[True, False, True], [False] * 3])
    patches = losses.masked_cross_entropy(
        torch.zeros(2, 3, 6), torch.full((2, 3, 6), 1 / 6), mask, 1
    )
    assert float(patches) == pytest.approx(math.log(6) / 2, rel=1e-6)  # none of the second image


def test_sinkhorn_uses_all_prototypes_equally():
    scores = Draw(1)(40, 5, grad=False).tanh()
    q = losses.sinkhorn(scores, 0.5, 100)
    torch.testing.assert_close(q.sum(1), torch.ones(40).double())
    torch.testing.assert_close(q.sum(0), torch.full((5,), 8.0).double())
    # the optimum of eq. 3 is exp(scores / epsilon) up to factors of rows and of columns
    rest = q.log() - scores / 0.5
    rest = rest - rest.mean(0) - rest.mean(1, keepdim=True) + rest.mean()
    torch.testing.assert_close(rest, torch.zeros_like(rest), rtol=0, atol=1e-9)


def test_sinkhorn_of_extreme_cosines():
    """In float32, with samples that are opposite to all prototypes but one, or to all."""
    scores = torch.full((8, 4), -1.0)
    scores[:4] = torch.eye(4) * 2 - 1
    q = losses.sinkhorn(scores, 0.05, 3)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(8))
    torch.testing.assert_close(
        losses.sinkhorn(torch.zeros(6, 4), 0.05, 3), torch.full((6, 4), 0.25)
    )


def test_collapse_has_its_price():
    """Constant embeddings: no correlation, no variance; repeated features: full correlation."""
    constant, d = torch.ones(6, 4).double(), 4
    assert float(losses.barlow_twins(constant, constant, 0.1)) == pytest.approx(d)
    # sqrt of the epsilon 1e-4 is what is left of the standard deviation
    assert float(losses.vicreg(constant, constant, 25, 25, 1)) == pytest.approx(25 * 0.99)
    same = torch.randn(64, 1).double().expand(-1, d) * 10
    expected = 0.1 * d * (d - 1)
    assert float(losses.barlow_twins(same, same, 0.1)) == pytest.approx(expected, rel=1e-4)
    variance = float(same[:, 0].var())
    assert float(losses.vicreg(same, same, 1, 1, 1)) == pytest.approx(2 * (d - 1) * variance**2)


def test_sigreg_of_a_gaussian_and_of_a_point():
    """N times the expected error of an empirical characteristic function is 1 - exp(-t^2)."""
    draw, turn = Draw(0), 2 * math.pi
    directions = F.normalize(draw(64, 64, grad=False), dim=0)
    samples = [float(losses.sigreg(draw(100, 64, grad=False), directions)) for _ in range(30)]
    assert np.mean(samples) == pytest.approx(turn**0.5 - (turn / 3) ** 0.5, rel=0.05)
    point = losses.sigreg(torch.zeros(10, 64).double(), directions)
    expected = 10 * (turn**0.5 - 2 * math.pi**0.5 + (turn / 3) ** 0.5)
    assert float(point) == pytest.approx(expected, rel=1e-3)


def test_mae_of_no_prediction_is_the_variance_of_a_standardised_patch():
    target, mask = Draw(0)(2, 3, 8, grad=False), torch.ones(2, 3, dtype=torch.bool)
    loss = losses.mae(torch.zeros(2, 3, 8).double(), 5 + 3 * target, mask, True)
    assert float(loss) == pytest.approx(7 / 8, rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.05, 0.01, 0.001])
def test_sinkhorn_of_far_apart_scores_is_a_distribution(epsilon):
    """Cosines differ by up to 2: more than the exponent of a float32 holds at a small epsilon."""
    scores = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [0.2, -0.4, 1.0]])
    q = losses.sinkhorn(scores, epsilon, 3)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(3))


def test_inputs_by_name_are_widened_too():
    z1, z2 = torch.randn(8, 16), torch.randn(8, 16)
    by_place = losses.nt_xent(z1.bfloat16(), z2.bfloat16(), 0.1)
    by_name = losses.nt_xent(z1=z1.bfloat16(), z2=z2.bfloat16(), temperature=0.1)
    assert by_name.dtype == torch.float32
    assert torch.equal(by_name, by_place)
