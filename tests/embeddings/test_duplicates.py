"""Near-duplicates: groups as a naive union-find makes them, leaks, and the images to keep."""

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from selfsight.embeddings import duplicates
from selfsight.embeddings.duplicates import kept, near_duplicates
from selfsight.errors import UserError
from selfsight.logging import log


def cosines(x: np.ndarray) -> np.ndarray:
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    return unit @ unit.T


def naive_groups(cosine: np.ndarray, threshold: float) -> set[frozenset[int]]:
    """Union-find by a loop over all pairs."""
    parent = list(range(len(cosine)))

    def root(i: int) -> int:
        return i if parent[i] == i else root(parent[i])

    for i, j in itertools.combinations(range(len(cosine)), 2):
        if cosine[i, j] >= threshold:
            parent[root(i)] = root(j)
    groups = [[i for i in range(len(parent)) if root(i) == r] for r in {root(i) for i in parent}]
    return {frozenset(group) for group in groups if len(group) > 1}


vectors = st.lists(
    st.lists(st.integers(-3, 3), min_size=3, max_size=3).filter(any), min_size=1, max_size=25
).map(lambda rows: np.array(rows, np.float32))
thresholds = st.floats(-0.9, 0.99)


@settings(max_examples=60)
@given(vectors, thresholds, st.integers(1, 30), st.integers(0, 10))
def test_groups_are_those_of_a_naive_union_find(x, threshold, block, most):
    cosine = cosines(x)
    assume((abs(cosine - threshold) > 1e-5).all())
    splits = ["test" if row % 3 == 0 else "train" for row in range(len(x))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "BLOCK", block)
        patch.setattr(duplicates, "MOST_LINKS", most)
        groups = near_duplicates(x, threshold, splits)
    assert {frozenset(g.rows.tolist()) for g in groups} == naive_groups(cosine, threshold)
    for group in groups:
        assert group.lowest == pytest.approx(cosine[np.ix_(group.rows, group.rows)].min(), abs=1e-6)
        leaks = {
            i for i in group.rows for j in group.rows
            if splits[i] != splits[j] and cosine[i, j] >= threshold
        }  # fmt: skip
        assert set(group.leaks.tolist()) == leaks
    order = [(not len(g.leaks), -len(g)) for g in groups]
    assert order == sorted(order)


@settings(max_examples=40)
@given(vectors, thresholds, st.randoms(use_true_random=False))
def test_groups_do_not_depend_on_the_order_of_rows(x, threshold, random):
    assume((abs(cosines(x) - threshold) > 1e-5).all())
    order = list(range(len(x)))
    random.shuffle(order)
    plain = {frozenset(g.rows.tolist()) for g in near_duplicates(x, threshold)}
    mixed = near_duplicates(x[order], threshold)
    assert {frozenset(order[row] for row in g.rows) for g in mixed} == plain


def test_equal_rows_have_the_similarity_one():
    x = torch.randn(200, 384, generator=torch.Generator().manual_seed(0))
    groups = near_duplicates(torch.cat([x, 3 * x]), threshold=1.0)
    assert sorted(group.rows.tolist() for group in groups) == [[n, n + 200] for n in range(200)]


def test_the_links_of_many_equal_rows_are_not_kept(monkeypatch):
    """500,000 pairs; after the first blocks nearly all of them join nothing."""
    monkeypatch.setattr(duplicates, "BLOCK", 100)
    monkeypatch.setattr(duplicates, "MOST_LINKS", 1000)
    seen, joined, add, groups = [], [], duplicates._Links.add, duplicates._Links.groups

    def counted(self, a, b):
        add(self, a, b)
        seen.append(self._count)

    def counted_groups(self):
        joined.append(sum(len(a) for a, _ in self._new))
        return groups(self)

    monkeypatch.setattr(duplicates._Links, "add", counted)
    monkeypatch.setattr(duplicates._Links, "groups", counted_groups)
    watched = []
    (group,) = near_duplicates(
        np.ones((1000, 2), np.float32), 0.9, watch=lambda *a: watched.append(a)
    )
    assert len(group) == 1000
    assert max(seen) <= 1000
    assert max(joined) <= 100 * 100  # of one block
    assert sum(joined) < 100_000
    assert watched[0] == ("comparing blocks", 1, 55)
    assert watched[-1] == ("comparing blocks", 55, 55)


def test_progress_says_how_much_time_is_left(monkeypatch, capsys):
    monkeypatch.setattr(duplicates, "BLOCK", 2)
    monkeypatch.setattr(log, "PLAIN_EVERY", 0)
    with log.Progress() as progress:
        near_duplicates(np.eye(5, dtype=np.float32), 0.9, watch=progress.work)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        f"comparing blocks {n}/6" for n in range(1, 7)
    ]
    assert all(re.fullmatch(r".*  \d+ s left", line) for line in lines)


def angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)


def test_a_chain_is_one_group_whose_lowest_similarity_tells():
    (group,) = near_duplicates(angles(0, 10, 20, 30, 90), np.cos(np.deg2rad(11)))
    assert group.rows.tolist() == [0, 1, 2, 3]
    assert group.lowest == pytest.approx(np.cos(np.deg2rad(30)), abs=1e-6)


def test_leaks_come_first_then_the_largest_groups_and_labels_are_compared():
    x = angles(0, 1, 2, 40, 41, 80, 81, 120, 121)
    splits = ["train"] * 6 + ["test"] + ["train"] * 2
    labels = ["a", "a", "a", "a", "b", "a", "a", None, "a"]
    groups = near_duplicates(x, np.cos(np.deg2rad(1.5)), splits, labels)
    assert [g.rows.tolist() for g in groups] == [[5, 6], [0, 1, 2], [3, 4], [7, 8]]
    assert [g.leaks.tolist() for g in groups] == [[5, 6], [], [], []]
    assert [g.mixed for g in groups] == [False, False, True, False]  # an unknown label is no other


def test_one_training_image_of_a_group_is_kept_and_none_that_leaks():
    # 0 is alone; 1 to 3 are a chain of train, train, test; 4 and 5 are copies; 6 and 7 of the test
    x = angles(0, 30, 31, 32, 60, 60, 90, 90)
    splits = ["train", "train", "train", "test", "train", "train", "test", "test"]
    groups = near_duplicates(x, np.cos(np.deg2rad(1.5)), splits)
    assert kept(groups, 8, splits).tolist() == [0, 1, 4]
    assert kept(near_duplicates(x, np.cos(np.deg2rad(1.5))), 8, None).tolist() == [0, 1, 4, 6]
    with pytest.raises(UserError, match="the splits are a, b: which one is for training"):
        kept([], 2, ["a", "b"])


@pytest.mark.parametrize("threshold", [-1, 1.1, float("nan"), float("inf")])
def test_another_threshold_is_refused(threshold):
    with pytest.raises(UserError, match="above -1 and at most 1"):
        near_duplicates(angles(0, 1), threshold)
