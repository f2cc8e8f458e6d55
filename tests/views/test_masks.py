"""Masks: exact counts, the papers' shapes, and functions of an image's coordinates alone."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from selfsight.batch import Batch, SampleKey
from selfsight.methods import METHODS
from selfsight.methods.ibot import large_masks
from selfsight.views.masks import block_mask, context_and_targets, masked_positions, random_mask
from tests.conftest import tiny_vit

JEPA = {  # of the paper
    "targets": 4,
    "target_scale": (0.15, 0.2),
    "target_ratio": (0.75, 1.5),
    "context_scale": (0.85, 1.0),
}
CORNERS = list(itertools.product((0, 1), repeat=2))
sides = st.integers(3, 16)
seeds = st.integers(0, 10**6)
repeatable = settings(max_examples=50, deadline=None)


def at(index: Tensor | int, seed: int = 0, epoch: int = 0) -> SampleKey:
    return SampleKey(seed, epoch, torch.arange(index) if isinstance(index, int) else index)


def all_masks(where: SampleKey, view: int = 0) -> dict[str, Tensor]:
    """Every kind of mask at these coordinates, (B, ...)."""
    many = torch.full((len(where.index),), 40)
    masks = {
        "random": random_mask(where, 64, 30, view),
        "block": block_mask(where, (10, 10), many, view),
    }
    if view == 0:
        context, targets = context_and_targets(where, (10, 10), **JEPA)
        masks |= {"context": context, "targets": targets.flatten(1)}
    return masks


# Functions of coordinates -------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=12), st.data(), seeds)
@repeatable
def test_a_mask_depends_on_no_other_image(indices, data, seed):
    chosen = data.draw(st.lists(st.integers(0, len(indices) - 1), min_size=1))
    index = torch.tensor(indices)
    whole, part = all_masks(at(index, seed)), all_masks(at(index[chosen], seed))
    for name, mask in whole.items():
        assert torch.equal(mask[chosen], part[name]), name


@pytest.mark.parametrize("other", ["seed", "epoch", "index", "view"])
def test_masks_of_other_coordinates_differ(other):
    n = 64
    before = all_masks(at(n))
    if other == "view":
        after = all_masks(at(n), view=1)
    elif other == "index":
        after = all_masks(at(torch.arange(n) + n))
    else:
        after = all_masks(at(n, **{other: 1}))
    for name, mask in after.items():
        same = (mask == before[name]).all(1).float().mean()
        # of blocks there are fewer than of single patches
        assert same < 0.1, (name, same)


# Single patches -----------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 60), st.data(), seeds)
@repeatable
def test_random_mask_has_exactly_so_many(n, tokens, data, seed):
    masked = data.draw(st.integers(0, tokens))
    mask = random_mask(at(n, seed), tokens, masked)
    assert mask.shape == (n, tokens)
    assert mask.dtype == torch.bool
    assert (mask.sum(1) == masked).all()


def test_random_mask_is_uniform_over_places_and_over_choices():
    n = 20_000
    counts = random_mask(at(n), 49, 12).sum(0).numpy()
    # loose: places of one mask exclude each other, so these counts vary less than free ones
    assert stats.chisquare(counts).pvalue > 1e-3
    assert np.abs(counts / n - 12 / 49).max() < 0.02
    small = random_mask(at(n), 5, 2)
    seen = [tuple(row.nonzero().flatten().tolist()) for row in small]
    choices = list(itertools.combinations(range(5), 2))
    assert stats.chisquare([seen.count(choice) for choice in choices]).pvalue > 1e-3


@given(st.integers(1, 8), st.integers(1, 20), st.data(), seeds)
@repeatable
def test_places_are_those_of_the_mask_in_order_and_then_others(n, tokens, data, seed):
    mask = torch.rand(n, tokens, generator=torch.Generator().manual_seed(seed)) < 0.5
    count = data.draw(st.integers(0, tokens))
    for row, got in zip(mask.tolist(), masked_positions(mask, count).tolist(), strict=True):
        expected = [i for i in range(tokens) if row[i]] + [i for i in range(tokens) if not row[i]]
        assert got == expected[:count]


@given(st.integers(1, 8), st.integers(2, 60), st.floats(0.1, 0.9), seeds)
@repeatable
def test_what_mae_keeps_is_what_it_does_not_mask(n, tokens, ratio, seed):
    kept = max(1, int(tokens * (1 - ratio)))
    mask = random_mask(at(n, seed), tokens, tokens - kept)
    for row, keep in zip(mask, masked_positions(~mask, kept), strict=True):
        masked = row.nonzero().flatten().tolist()
        assert sorted(masked + keep.tolist()) == list(range(tokens))


def test_simmim_masks_whole_units():
    """Units of 2 x 2 patches on a 6 x 6 grid: 60 % of 9 units, rounded up, are 6."""
    method = METHODS["simmim"]
    method = method(tiny_vit(24), method.Config(mask_size=8, mask_ratio=0.6))
    mask = method.mask(Batch([], None, at(200))).view(200, 6, 6)
    units = mask.view(200, 3, 2, 3, 2).transpose(2, 3).flatten(3)
    assert (units.all(-1) == units.any(-1)).all()
    assert (units[..., 0].sum((1, 2)) == 6).all()
    assert units[..., 0].float().mean(0).sub(6 / 9).abs().max() < 0.15


# Blocks -------------------------------------------------------------------------------------------


def rectangle(mask: Tensor) -> tuple[int, int] | None:
    """(height, width) if the patches that are set fill a rectangle."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    if not len(rows):
        return None
    h, w = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
    return (h, w) if int(mask.sum()) == h * w else None


@given(sides, sides, st.data(), seeds)
@repeatable
def test_block_mask_never_has_more(rows, columns, data, seed):
    wanted = data.draw(st.lists(st.integers(0, rows * columns), min_size=1, max_size=6))
    masked = torch.tensor(wanted)
    mask = block_mask(at(len(wanted), seed), (rows, columns), masked)
    assert mask.shape == (len(wanted), rows * columns)
    assert (mask.sum(1) <= masked).all()
    assert not mask[masked == 0].any()


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.4, 0.5])
def test_block_mask_comes_near_on_the_grid_of_a_vit(ratio):
    """At 14 x 14, the paper's, 0.3 patches are missing on average and never more than 3."""
    n = 1000
    masked = torch.full((n,), int(ratio * 196))
    missing = masked - block_mask(at(n), (14, 14), masked).sum(1)
    assert missing.float().mean() < 0.3
    assert missing.max() <= 3


def test_block_mask_of_one_try_is_one_rectangle_of_the_papers_shape():
    """Area from 4 patches to what is wanted, ratio from 0.3 to 1 / 0.3, tall as often as wide."""
    n, wanted = 3000, 40
    masks = block_mask(at(n), (14, 14), torch.full((n,), wanted), tries=1).view(n, 14, 14)
    shapes = [rectangle(mask) for mask in masks if mask.any()]
    assert None not in shapes
    assert len(shapes) > 0.9 * n  # the others were rounded to more than is wanted, or too long
    h, w = np.array(shapes).T
    assert (h * w).max() <= wanted
    assert ((h + 0.5) * (w + 0.5)).min() > 4
    assert ((h + 0.5) / (w - 0.5)).min() > 0.3
    assert ((w + 0.5) / (h - 0.5)).min() > 0.3
    tall, wide = (h > w).sum(), (w > h).sum()
    assert stats.binomtest(int(tall), int(tall + wide)).pvalue > 1e-3
    # and it lies anywhere: of the rectangles of one height all first rows are as frequent
    top = np.array([int(mask.any(1).nonzero()[0]) for mask in masks if mask.any()])
    assert stats.chisquare(np.bincount(top[h == 4], minlength=11)).pvalue > 1e-3


def test_block_mask_makes_blocks_not_dots():
    """A masked patch's right neighbour is masked far more often than by chance."""
    n = 300
    mask = block_mask(at(n), (14, 14), torch.full((n,), 58)).view(n, 14, 14)
    together = (mask[:, :, :-1] & mask[:, :, 1:]).sum() / mask[:, :, :-1].sum()
    assert together > 0.65  # by chance 58 / 196 = 0.3


def test_ibot_masks_half_of_the_views_by_a_tenth_to_a_half():
    n, c = 2000, METHODS["ibot"].Config()
    mask = large_masks(Batch([], None, at(n)), tiny_vit(56), c.mask_probability, c.mask_ratio)
    first, second = (part.sum(1) / 196 for part in mask.chunk(2))
    for covered in (first, second):
        some = covered[covered > 0]
        assert stats.binomtest(len(some), n, 0.5).pvalue > 1e-3
        assert some.max() <= 0.5
        assert some.min() > 0.08  # a tenth, rounded down, less two patches
        assert float(some.mean()) == pytest.approx(0.3, abs=0.015)
    # the two large views are masked apart from each other
    assert stats.binomtest(int(((first > 0) & (second > 0)).sum()), n, 0.25).pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / n**0.5


# Context and targets ------------------------------------------------------------------------------


@given(st.integers(4, 16), st.integers(4, 16), st.integers(1, 6), seeds)
@repeatable
def test_context_and_targets(rows, columns, count, seed):
    n, patches = 4, rows * columns
    context, targets = context_and_targets(
        at(n, seed), (rows, columns), **{**JEPA, "targets": count}
    )
    assert context.shape == (n, patches)
    assert targets.shape == (n, count, patches)
    least = min(10, patches // 4)
    assert (context.sum(1) >= least).all()
    for see, blocks in zip(context, targets, strict=True):
        shapes = {rectangle(block.view(rows, columns)) for block in blocks}
        assert len(shapes) == 1  # all of one size
        assert None not in shapes
        for block in blocks:
            # overlap is left only where cutting the block out would leave too little
            assert not (see & block).any() or (see & ~block).sum() < least


def test_on_the_papers_grid_context_and_targets_never_meet_and_have_the_papers_sizes():
    n = 1000
    context, targets = context_and_targets(at(n), (14, 14), **JEPA)
    assert not (context[:, None] & targets).any()
    h, w = np.array([rectangle(t[0].view(14, 14)) for t in targets]).T
    assert ((h - 0.5) * (w - 0.5)).max() < 0.2 * 196 < ((h + 0.5) * (w + 0.5)).max()
    assert ((h + 0.5) * (w + 0.5)).min() > 0.15 * 196 > ((h - 0.5) * (w - 0.5)).min()
    assert ((h - 0.5) / (w + 0.5)).max() < 1.5
    assert ((h + 0.5) / (w - 0.5)).min() > 0.75
    assert (h > w).any()
    assert (w > h).any()
    # what is seen is one square, at some place, without the targets
    union = targets.any(1)
    squares = torch.zeros(5, 14, 14, dtype=torch.bool)
    for number, (side, top, left) in enumerate([(14, 0, 0), *((13, a, b) for a, b in CORNERS)]):
        squares[number, top : top + side, left : left + side] = True
    possible = squares.flatten(1)[None] & ~union[:, None]
    assert (context[:, None] == possible).all(2).any(1).all()
    assert 0.35 < float(context.float().mean()) < 0.6


def test_the_context_alone_is_a_square_of_the_papers_area():
    """With a target of one patch little is cut out of it."""
    n = 500
    context, targets = context_and_targets(
        at(n), (14, 14), **{**JEPA, "targets": 1, "target_scale": (1e-6, 1e-6)}
    )
    assert (targets.sum(2) == 1).all()
    whole = (context | targets[:, 0]).view(n, 14, 14)
    shapes = [s for s in map(rectangle, whole) if s]  # None: the target lies outside
    assert len(shapes) > 0.8 * n
    assert all(h == w for h, w in shapes)
    assert {h for h, _ in shapes} == {13, 14}  # sqrt(0.85) * 14 = 12.9


def test_targets_lie_anywhere():
    """First rows are as frequent, those at the edge included."""
    n = 4000
    _, targets = context_and_targets(at(n), (14, 14), **JEPA)
    height = targets.view(n, 4, 14, 14).any(3).sum(2)
    top = targets.view(n, 4, 14, 14).any(3).byte().argmax(2)
    for m in range(4):
        rows = top[height[:, m] == 6, m].numpy()
        assert len(rows) > 500
        assert stats.chisquare(np.bincount(rows, minlength=9)).pvalue > 1e-3


def test_small_grids_relax_the_cut_now_and_then():
    """On 4 x 4 patches four targets would often leave nothing to see."""
    context, targets = context_and_targets(at(1000), (4, 4), **JEPA)
    overlap = (context[:, None] & targets).any(2).any(1).float().mean()
    assert 0 < overlap < 0.2
    assert context.any(1).all()
    assert math.isclose(float(targets.float().mean()), 0.175, abs_tol=0.03)
