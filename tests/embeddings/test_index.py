"""Search by cosine: against a naive loop, scikit-learn and faiss; queries by row, path and file."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from selfsight.embeddings import index as index_module
from selfsight.embeddings.index import Index
from selfsight.embeddings.search import rows_of
from selfsight.embeddings.table import Table
from selfsight.errors import UserError
from selfsight.evaluate import knn as knn_module
from selfsight.evaluate.knn import neighbours, unit_rows


def clustered(rows: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    """Features as encoders give them: around a few directions, of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, width, generator=generator)
    which = torch.randint(0, 5, (rows,), generator=generator)
    noise = torch.randn(rows, width, generator=generator)
    return (centres[which] + 0.5 * noise) * (1 + torch.rand(rows, 1, generator=generator))


def naive(bank: torch.Tensor, queries: torch.Tensor) -> np.ndarray:
    """(M, N) cosines by a loop in float64."""
    pairs = [[(q, b) for b in bank.double().numpy()] for q in queries.double().numpy()]
    length = np.linalg.norm
    return np.array([[q @ b / length(q) / length(b) for q, b in line] for line in pairs])


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 20), st.data())
def test_search_is_a_loop_over_all_rows(rows, queries, chunk, data):
    k = data.draw(st.integers(1, rows))
    bank, ask = clustered(rows), clustered(queries, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn_module, "BANK", chunk)
        similarity, found = Index(bank).search(ask, k)
    cosine = naive(bank, ask)
    np.testing.assert_allclose(similarity, -np.sort(-cosine, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(similarity, np.take_along_axis(cosine, found.numpy(), 1), atol=1e-6)
    assert all(len(set(row)) == k for row in found.tolist())


@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_search_finds_what_other_libraries_find(kind):
    bank, ask = clustered(2000, 32), clustered(20, 32, seed=1)
    index = Index(bank.numpy(), kind)
    similarity, rows = index.search(ask.numpy(), 10)
    peer = NearestNeighbors(n_neighbors=10, algorithm="brute", metric="cosine").fit(bank)
    distance, theirs = peer.kneighbors(ask)
    np.testing.assert_array_equal(rows.numpy(), theirs)
    np.testing.assert_allclose(similarity.numpy(), 1 - distance, atol=1e-5)
    assert index.recall(10) == 1.0


def test_equal_rows_come_in_their_order():
    bank = torch.tensor([[0.0, 1.0], [2.0, 0.0], [5.0, 0.0], [1.0, 0.0]])
    _, rows = Index(bank).search(torch.tensor([[3.0, 0.0]]), 4)
    assert rows.tolist() == [[1, 2, 3, 0]]


@pytest.mark.parametrize("kind", ["faiss-ivf", "faiss-hnsw"])
def test_the_recall_of_an_approximate_index_is_measured(kind, monkeypatch):
    monkeypatch.setattr(index_module, "WALK", 4)
    bank = clustered(3000, 32)
    index = Index(bank, kind)
    rows = torch.arange(0, 3000, 30)
    truth, found = (i.search(bank[rows], 11)[1].tolist() for i in (Index(bank), index))
    others = [set(t) - {row} for t, row in zip(truth, rows.tolist(), strict=True)]
    hits = [len(o & set(f)) for o, f in zip(others, found, strict=True)]
    assert index.recall(10) == pytest.approx(sum(hits) / (10 * len(hits)), abs=1e-6)
    assert 0.1 < index.recall(10) < 1
    if kind == "faiss-ivf":  # a worse index has a smaller recall
        monkeypatch.setattr(index_module, "PROBES", 1)
        assert Index(bank, kind).recall(10) < index.recall(10)


def test_an_index_that_finds_fewer_says_so():
    index = Index(clustered(400, 4), "faiss-ivf")
    index._faiss.nprobe = 1
    similarity, rows = index.search(clustered(3, 4, seed=1), 400)
    assert (rows == -1).any()
    assert (similarity[rows == -1] == -torch.inf).all()


def test_a_bank_of_unit_rows_is_not_normalised_again(monkeypatch):
    bank, ask = clustered(100), clustered(3, seed=1)
    usual = neighbours(bank, ask, 5)
    unit, seen = unit_rows(bank.half()[:0].float()), []
    assert unit.shape == (0, 8)
    unit, plain = unit_rows(bank), knn_module._unit
    monkeypatch.setattr(knn_module, "_unit", lambda x, d: seen.append(len(x)) or plain(x, d))
    again = neighbours(unit, ask, 5, unit_bank=True)
    assert seen == [3]
    assert all(map(torch.equal, usual, again))


@pytest.mark.parametrize("k", [0, -1, 6])
def test_another_k_is_refused(k):
    with pytest.raises(UserError, match=rf"k={k}: the table has 5 rows; use a k from 1 to 5"):
        Index(clustered(5)).search(clustered(1), k)


def test_another_width_an_unknown_index_and_odd_features_are_refused():
    with pytest.raises(UserError, match="8 numbers wide"):
        Index(clustered(5)).search(torch.ones(1, 7), 1)
    with pytest.raises(UserError, match="index=annoy: unknown; use one of exact, faiss"):
        Index(clustered(5), "annoy")
    with pytest.raises(UserError, match="must be"):
        Index(torch.empty(0, 8))
    bad = clustered(5)
    bad[3, 1] = float("inf")
    with pytest.raises(UserError, match="row 3 are not finite"):
        Index(bad)


def test_without_faiss_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match=r"needs faiss: pip install 'selfsight\[search\]'"):
        Index(clustered(5), "faiss")


# Which row a query names --------------------------------------------------------------------------


def test_a_query_is_a_number_a_path_in_the_table_or_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for name in ("a/1.jpg", "2.jpg", "3"):
        (tmp_path / name).write_bytes(b"")
    paths = ["digits test 5", str(tmp_path / "a" / "1.jpg"), "gone.jpg", "gone.jpg"]
    table = Table(paths, np.ones((4, 2), np.float32))
    queries = ["3", "digits test 5", "a/1.jpg", "a/../a/1.jpg", "gone.jpg", "2.jpg", "./3"]
    assert rows_of(table, queries) == [3, 0, 1, 1, 2, None, None]
    with pytest.raises(UserError, match=r"'4': the table has rows 0 to 3; .* './4'"):
        rows_of(table, ["4"])
    with pytest.raises(UserError, match=r"'none\.jpg': is no path in the table and no image file"):
        rows_of(table, ["none.jpg"])
