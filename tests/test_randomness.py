"""Values follow from their coordinates alone, are uniform, and do not correlate."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from selfsight import randomness

integers = st.integers(0, 2**40)


def reference(seed: int, epoch: int, i: int, view: int, slot: int) -> float:
    """The same hash in Python's integers."""
    state = randomness.mix(
        i * randomness._GOLDEN + randomness.key(randomness.VIEWS, seed, epoch, view)
    )
    return (randomness.mix(state + (slot + 1) * randomness._GOLDEN) >> 40) * 2.0**-24


@given(integers, st.integers(0, 10_000), integers, st.integers(0, 20), st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_equals_integer_arithmetic(seed, epoch, i, view, slot):
    value = randomness.uniform(seed, epoch, torch.tensor([i]), view, slot + 1)[0, slot]
    assert float(value) == reference(seed, epoch, i, view, slot)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50), st.data())
@settings(max_examples=50, deadline=None)
def test_does_not_depend_on_batch_or_order(indices, data):
    whole = randomness.uniform(1, 2, torch.tensor(indices), 0, 30)
    pick = data.draw(st.lists(st.integers(0, len(indices) - 1), min_size=1))
    part = randomness.uniform(1, 2, torch.tensor([indices[p] for p in pick]), 0, 30)
    assert torch.equal(whole[pick], part)


def chi_square_p(values: np.ndarray, bins: int = 64) -> float:
    counts = np.bincount((values * bins).astype(int), minlength=bins)
    return stats.chisquare(counts).pvalue


@pytest.mark.parametrize("axis", ["seed", "epoch", "index", "view", "slot"])
def test_uniform_along_each_coordinate(axis):
    n = 20_000
    base = {"seed": 3, "epoch": 5, "index": 7, "view": 1, "slot": 2}
    if axis == "index":
        x = randomness.uniform(3, 5, torch.arange(n), 1, 3)[:, 2]
    elif axis == "slot":
        x = randomness.uniform(3, 5, torch.tensor([7]), 1, n)[0]
    else:
        values = []
        for k in range(2000):
            c = {**base, axis: k}
            u = randomness.uniform(c["seed"], c["epoch"], torch.arange(10), c["view"], 3)
            values.append(u[:, 2])
        x = torch.cat(values)
    x = x.numpy()
    assert chi_square_p(x) > 1e-4
    assert stats.kstest(x, "uniform").pvalue > 1e-4
    # neighbours along the axis do not correlate
    lag = 10 if axis not in ("index", "slot") else 1
    r = np.corrcoef(x[:-lag], x[lag:])[0, 1]
    assert abs(r) < 4.5 / np.sqrt(len(x))


def test_the_tests_of_uniformity_can_fail():
    grid = np.sqrt((np.arange(20_000) + 0.5) / 20_000)
    assert chi_square_p(grid) < 1e-4
    assert abs(np.corrcoef(grid[:-1], grid[1:])[0, 1]) > 4.5 / np.sqrt(len(grid))


def test_views_and_slots_are_independent():
    index = torch.arange(20_000)
    a, b = (randomness.uniform(0, 0, index, view, 8) for view in (0, 1))
    table = torch.cat([a, b], 1).numpy()
    r = np.corrcoef(table.T)[~np.eye(16, dtype=bool)]
    assert np.abs(r).max() < 5 / np.sqrt(len(table))


@given(st.integers(1, 5000), integers, st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_permutation(n, seed, epoch):
    order = randomness.permutation(n, randomness.ORDER, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(n))
    assert np.array_equal(order, randomness.permutation(n, randomness.ORDER, seed, epoch))


def test_permutations_of_epochs_differ_and_are_even():
    orders = np.stack([randomness.permutation(20, randomness.ORDER, 0, e) for e in range(4000)])
    counts = np.stack([np.bincount(orders[:, place], minlength=20) for place in range(20)])
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4


def test_directions_are_uniform_on_the_sphere_and_change_with_every_step():
    a = torch.stack([randomness.directions(0, step, 5, 64) for step in range(50)])
    assert torch.equal(a[3], randomness.directions(0, 3, 5, 64))
    assert not torch.equal(a[3], randomness.directions(1, 3, 5, 64))
    torch.testing.assert_close(a.norm(dim=1), torch.ones(50, 64))
    assert len({tuple(x) for x in a[:, :, 0].tolist()}) == 50
    points = a.transpose(1, 2).flatten(0, 1)  # of 3200
    assert points.mean(0).abs().max() < 4.5 * (0.2 / 3200) ** 0.5
    assert (points.T @ points / 3200 - torch.eye(5) / 5).abs().max() < 0.02


@given(st.integers(1, 3000), integers, st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_shuffled_is_a_permutation_of_the_places(n, seed, epoch):
    order = randomness.shuffled(np.arange(n), n, randomness.ORDER, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(n))


@given(st.integers(1, 10**9), integers, st.data())
@settings(max_examples=50, deadline=None)
def test_shuffled_place_by_place(n, seed, data):
    """Also among a billion, each place by itself goes where it goes among others."""
    places = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    together = randomness.shuffled(places, n, randomness.ORDER, seed, 3)
    alone = [
        int(randomness.shuffled(places[k : k + 1], n, randomness.ORDER, seed, 3)[0])
        for k in range(len(places))
    ]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < n)).all()
    assert len(set(together.tolist())) == len(set(places.tolist()))


def test_shuffled_epochs_are_even_and_do_not_correlate():
    orders = np.stack(
        [randomness.shuffled(np.arange(20), 20, randomness.ORDER, 0, e) for e in range(4000)]
    )
    counts = np.stack([np.bincount(column, minlength=20) for column in orders.T])
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4  # every image as often in every place
    follows = np.bincount((orders[:, 1:] - orders[:, :-1]).ravel() % 20, minlength=20)
    assert follows[0] == 0
    assert stats.chisquare(follows[1:]).pvalue > 1e-4  # whom an image follows is even as well
    long = [randomness.shuffled(np.arange(1437), 1437, randomness.ORDER, 0, e) for e in range(200)]
    between = [np.corrcoef(a, b)[0, 1] for a, b in itertools.pairwise(long)]
    assert abs(np.std(between) * 1437**0.5 - 1) < 0.2


def test_every_order_of_three_and_four():
    """All permutations of so few come equally often: no order is out of reach."""
    for n, count in ((3, 6), (4, 24)):
        orders = [
            tuple(randomness.shuffled(np.arange(n), n, 7, seed)) for seed in range(200 * count)
        ]
        times = np.unique(orders, axis=0, return_counts=True)[1]
        assert len(times) == count
        assert stats.chisquare(times).pvalue > 1e-4


@pytest.mark.parametrize("n", [1, 7, 100, 1_000])
def test_the_first_of_a_permutation_need_no_permutation(n, monkeypatch):
    """The numbers that the whole order begins with, also where they come from many blocks."""
    monkeypatch.setattr(randomness, "_BLOCK", 64)
    whole = randomness.permutation(n, 5, 6)
    assert sorted(whole.tolist()) == list(range(n))
    hashes = randomness.hashes_at(np.arange(n), 5, 6)
    assert (np.diff(hashes[whole].astype(object)) > 0).all()
    for count in {1, n // 3 or 1, n - 1 or 1, n}:
        assert randomness.first_of(n, count, 5, 6).tolist() == whole[:count].tolist()
