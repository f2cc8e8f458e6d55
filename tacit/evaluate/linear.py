"""Linear probes on cached features: logistic regression with all labels and with a few."""

import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from tacit import randomness

STRENGTHS = tuple(
    10.0**e for e in (-4, -3, -2, -1, 0, 1)
)  # C / N of scikit-learn's C, from strong to weak
VALIDATION = 0.2  # of the training split, class by class
SHOTS, DRAWS = (1, 5), 10
FEW_LABELS_C = 1.0  # too few labels to choose it: fixed, the same for every encoder
ITERATIONS = 100  # of L-BFGS, each strength starting from the one before


@dataclass(frozen=True)
class LinearResult:
    """Accuracies in [0, 1] on the test split.

    Attributes:
        top1, top5: with all labels.
        strength: the chosen C, per training image.
        few: labels per class -> (mean, standard deviation) of top-1 over the drawn subsets.
    """

    top1: float
    top5: float
    strength: float
    few: dict[int, tuple[float, float]]


def linear_probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    seed: int,
) -> LinearResult:
    """Logistic regression on features standardised by the training split.

    The strength of the L2 penalty is chosen on a validation part of the training split; the
    classifier is then fitted to all of it and sees the test split once.

    Args:
        train: (N, D), test: (M, D) float32 features; labels int64.
        seed: of the validation part and of the drawn subsets.
    """
    mean, std = train.mean(0), train.std(0)
    std[std < 1e-6] = 1.0  # a feature that never changes says nothing
    train, test = (train - mean) / std, (test - mean) / std
    held = _validation_rows(train_labels, seed)
    fit_rows, check_rows = np.flatnonzero(~held), np.flatnonzero(held)
    best, strength, start = -1.0, STRENGTHS[0], None
    for candidate in STRENGTHS:
        start = _fit(train[fit_rows], train_labels[fit_rows], candidate * len(fit_rows), start)
        accuracy = start.score(train[check_rows], train_labels[check_rows])
        if accuracy > best:
            best, strength = accuracy, candidate
    final = _fit(train, train_labels, strength * len(train))
    top1, top5 = _test(final, test, test_labels)
    few = {}
    for shots in SHOTS:
        scores = [
            _few(train, train_labels, test, test_labels, shots, seed, draw) for draw in range(DRAWS)
        ]
        few[shots] = (float(np.mean(scores)), float(np.std(scores, ddof=1)))
    return LinearResult(top1, top5, strength, few)


def few_rows(labels: np.ndarray, shots: int, seed: int, draw: int) -> np.ndarray:
    """`shots` rows of each class, or all it has, by coordinates; those of 1 lie inside 5."""
    order = randomness.permutation(len(labels), randomness.SUBSET, seed, draw)
    return np.sort(np.concatenate([order[labels[order] == c][:shots] for c in np.unique(labels)]))


def _validation_rows(labels: np.ndarray, seed: int) -> np.ndarray:
    """A mask: the same share of each class, at least one image of every class that has two."""
    order = randomness.permutation(len(labels), randomness.SPLIT, seed)
    held = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        rows = order[labels[order] == c]
        count = max(1, round(VALIDATION * len(rows))) if len(rows) > 1 else 0
        held[rows[:count]] = True
    return held


def _fit(
    x: np.ndarray, y: np.ndarray, c: float, start: LogisticRegression | None = None
) -> LogisticRegression:
    model = LogisticRegression(C=c, max_iter=ITERATIONS, warm_start=True)
    if start is not None and np.array_equal(start.classes_, np.unique(y)):
        model.coef_, model.intercept_ = start.coef_.copy(), start.intercept_.copy()
        model.classes_ = start.classes_
    with warnings.catch_warnings():
        # The path stops at a fixed number of iterations; the validation part judges what it found.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


def _test(model: LogisticRegression, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """top-1 and top-5 in [0, 1]; with five classes or fewer top-5 is 1."""
    scores = model.predict_proba(x)
    order = np.argsort(-scores, axis=1)[:, :5]
    hits = model.classes_[order] == y[:, None]
    return float(hits[:, 0].mean()), float(hits.any(1).mean())


def _few(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    shots: int,
    seed: int,
    draw: int,
) -> float:
    rows = few_rows(train_labels, shots, seed, draw)
    return float(_fit(train[rows], train_labels[rows], FEW_LABELS_C).score(test, test_labels))
