"""Labels of any form, and parts that hold every class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.model_selection import train_test_split

from selfsight import randomness
from selfsight.data.labels import as_classes, by_class, draw_part, hold_out
from selfsight.errors import UserError

FORMS = {
    "numbers": lambda y: y,
    "a column": lambda y: y[:, None],
    "floats": lambda y: y.astype(np.float32),
    "one-hot": lambda y: np.eye(y.max() + 1, dtype=np.uint8)[y],
    "one-hot floats": lambda y: np.eye(y.max() + 1)[y],
    "texts": lambda y: y.astype(str),
    "bytes": lambda y: y.astype("S5"),
    "texts of floats": lambda y: np.char.add(y.astype(str), ".0"),
    "a list": lambda y: y.tolist(),
}


@given(hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 50)))
def test_all_forms_of_the_same_labels_are_the_same(y):
    expected, places = np.unique(y, return_inverse=True)
    for form, make in FORMS.items():
        if form.startswith("one-hot") and y.max() == 0:
            continue  # one column of ones is a column of the number 1
        classes, labels = as_classes(make(y), len(y), "x")
        assert classes == [str(n) for n in expected], form
        assert labels.tolist() == places.tolist(), form
        assert labels.dtype == np.int64


def test_only_values_that_occur_are_classes():
    classes, labels = as_classes(np.array([400_000, 7, 7, 2**40]), 4, "x")
    assert classes == ["7", "400000", str(2**40)]
    assert labels.tolist() == [1, 0, 0, 2]


def test_booleans_and_names():
    assert as_classes([True, False, True], 3, "x")[0] == ["false", "true"]
    classes, labels = as_classes(["dog", "cat", "v1.2b"], 3, "x")
    assert (classes, labels.tolist()) == (["cat", "dog", "v1.2b"], [1, 0, 2])


@pytest.mark.parametrize(
    "values", [[1.5, 2], [np.inf, 1], [[1, 1], [0, 1]], [["a", "b"]] * 2, [-1, 0]]
)
def test_what_is_no_class_is_refused(values):
    with pytest.raises(UserError, match=r"^data\.path=y\.npz: .*data\.labels=false"):
        as_classes(values, 2, "data.path=y.npz")


@given(st.lists(st.integers(2, 40), min_size=2, max_size=12), st.sampled_from([0.1, 0.2, 0.5]))
def test_a_part_is_held_out_of_each_class_as_scikit_learn_does(sizes, share):
    y = np.repeat(np.arange(len(sizes)), sizes)
    held = hold_out(y, share, 0)
    ours = np.bincount(y[held], minlength=len(sizes))
    assert (ours >= 1).all()
    assert (np.bincount(y[~held], minlength=len(sizes)) >= 1).all()
    count = max(len(sizes), round(share * len(y)))
    _, theirs = train_test_split(y, test_size=min(count, len(y) - len(sizes)), stratify=y)
    assert np.abs(ours - np.bincount(theirs, minlength=len(sizes))).max() <= 2


def test_a_class_of_one_image_stays_in_the_training_part():
    held = hold_out(np.array([0, 0, 0, 1, 2, 2]), 0.3, 0)
    assert np.bincount(np.array([0, 0, 0, 1, 2, 2])[held], minlength=3).tolist() == [1, 0, 1]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.data())
def test_a_drawn_part_holds_every_class_and_smaller_parts_lie_in_larger_ones(sizes, data):
    y = np.repeat(np.arange(len(sizes)), sizes)
    count = data.draw(st.integers(len(sizes), len(y)))
    rows = draw_part(y, len(y), count)
    assert len(set(rows.tolist())) == count
    assert set(y[rows]) == set(y)
    assert (np.diff(rows) > 0).all()


def test_a_part_of_images_without_labels_is_plainly_drawn():
    small, large = (set(draw_part(None, 500, n).tolist()) for n in (20, 60))
    assert small < large
    many = np.arange(500) % 2
    assert set(draw_part(many, 500, 20).tolist()) == small, "no class is left out, nothing changes"


@pytest.mark.parametrize("classes", [1, 3, 50, 2**16 + 1])
def test_rows_of_a_class_are_in_the_order_of_all_rows(classes):
    """As they would be taken out of one permutation of all images."""
    y = np.random.default_rng(0).integers(0, classes, 400)
    y[0] = classes - 1
    order = randomness.permutation(len(y), randomness.SPLIT, 7)
    found = list(by_class(y, randomness.SPLIT, 7))
    assert len(found) == classes
    for label in set(y.tolist()):
        assert found[label].tolist() == order[y[order] == label].tolist()
