"""Clusters: of blobs that are apart, of digits, the same with any number of threads."""

import numpy as np
import pytest
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from threadpoolctl import threadpool_info, threadpool_limits

from selfsight.embeddings import cluster
from selfsight.embeddings.cluster import NOISE, clustered, described, hdbscan, kmeans
from selfsight.errors import UserError


def blobs(sizes: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows around directions that are at right angles, of different lengths."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    x = np.eye(len(sizes))[y] + 0.05 * rng.standard_normal((len(y), len(sizes)))
    order = rng.permutation(len(y))
    scale = rng.uniform(0.1, 10, (len(y), 1))
    return (x * scale)[order].astype(np.float32), y[order]


@pytest.mark.parametrize("whole", [cluster.WHOLE, 50])
def test_k_means_finds_directions_and_not_lengths(monkeypatch, whole):
    monkeypatch.setattr(cluster, "WHOLE", whole)  # beyond it, of samples
    x, y = blobs((50, 40, 30))
    assert adjusted_rand_score(y, kmeans(x, 3)) == 1


def test_hdbscan_finds_them_and_leaves_what_is_alone():
    x, y = blobs((50, 40, 30))
    x[0] = -1
    numbers = hdbscan(x, 10)
    assert numbers[0] == NOISE
    assert adjusted_rand_score(y[1:], numbers[1:]) == 1


@pytest.mark.parametrize("whole", [cluster.WHOLE, 500])
def test_the_same_seed_gives_the_same_clusters_with_any_number_of_threads(monkeypatch, whole):
    monkeypatch.setattr(cluster, "WHOLE", whole)
    x = load_digits().data.astype(np.float32)[:1000]
    one = kmeans(x, 10, seed=3)
    threads, used = set(), {KMeans: KMeans.fit, MiniBatchKMeans: MiniBatchKMeans.fit}
    for model, fit in used.items():

        def watched(self, x, y=None, sample_weight=None, fit=fit):
            threads.update(library["num_threads"] for library in threadpool_info())
            return fit(self, x)

        monkeypatch.setattr(model, "fit", watched)
    with threadpool_limits(2):
        assert (kmeans(x, 10, seed=3) == one).all()
    assert threads == {1}  # several add up sums in the order in which they finish
    assert (kmeans(x, 10, seed=4) != one).any()


def test_clusters_are_described_by_size_centre_and_labels():
    x, y = blobs((5, 30, 20))
    numbers = np.where(y == 0, NOISE, y)
    labels = [None if row == 0 else f"class {y[row]}" for row in range(len(y))]
    truth = [f"class {n}" for n in y]
    found = described(x, numbers, labels)
    assert [(c.number, len(c)) for c in found.clusters] == [(0, 30), (1, 20), (NOISE, 5)]
    assert [c.label for c in found.clusters] == ["class 1", "class 2", "class 0"]
    assert [c.purity for c in found.clusters] == [1, 1, 1]
    assert (found.purity, found.nmi, found.ari) == (1, pytest.approx(1), pytest.approx(1))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for c in found.clusters:
        assert (found.numbers[c.rows] == c.number).all()
        centre = unit[c.rows].mean(0)
        cosine = unit[c.rows] @ centre / np.linalg.norm(centre)
        np.testing.assert_allclose(c.similarities, cosine, atol=1e-5)
        assert (np.diff(c.similarities) <= 0).all()
    assert described(x, numbers, truth).purity == 1
    plain = described(x, numbers)
    assert (plain.purity, plain.nmi, plain.ari, plain.clusters[0].label) == (None,) * 4


def test_agreement_with_labels_is_that_of_scikit_learn():
    x, y = load_digits(return_X_y=True)
    labels = [str(n) for n in y]
    found, made = clustered(x.astype(np.float32), k=12, labels=labels)
    assert made == {"method": "k-means", "k": 12, "seed": 0}
    most = sum(max(np.bincount(y[found.numbers == n])) for n in range(12))
    assert found.purity == pytest.approx(most / len(y))
    assert found.nmi == pytest.approx(normalized_mutual_info_score(y, found.numbers))
    assert found.ari == pytest.approx(adjusted_rand_score(y, found.numbers))


def test_fewer_different_rows_give_fewer_clusters(capsys):
    x = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    found, _ = clustered(x, k=4)
    assert [len(c) for c in found.clusters] == [5, 5]
    assert "Only 2 clusters" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"k": 0}, "k=0: the table has 8 rows; use a k from 1 to 8"),
        ({"k": 9}, "k=9"),
        ({}, "k=20"),
        ({"smallest": 1}, "hdbscan=1: the size of the smallest cluster is from 2"),
        ({"smallest": 9}, "hdbscan=9"),
        ({"k": 2, "smallest": 3}, "k=2 and hdbscan=3: choose one"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(keys, line):
    with pytest.raises(UserError, match=line):
        clustered(np.ones((8, 2), np.float32), **keys)
