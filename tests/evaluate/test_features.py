"""Features on disk and over ranks, and what is read from them, against oracles."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import nn

from selfsight import randomness
from selfsight.batch import Normalization
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.labels import hold_out
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError
from selfsight.evaluate import features as module
from selfsight.evaluate import knn as knn_module
from selfsight.evaluate import linear
from selfsight.evaluate.features import (
    extract,
    plain_views,
    raw_pixels,
    read_features,
    scale_of,
    weights_hash,
)
from selfsight.evaluate.knn import knn_accuracy, neighbours
from selfsight.evaluate.linear import STRENGTHS, linear_probe
from selfsight.evaluate.subsets import draw
from tests.processes import in_ranks

CPU = torch.device("cpu")
HALF = (0.5,) * 3


def digits(split: str = "test", **keys) -> Images:
    config = DataConfig(**keys)
    return Images(open_source(config, split), config, CPU)


class Net(nn.Module):
    """Some features of digits, times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.calls = factor, 0
        torch.manual_seed(0)
        self.layer = nn.Linear(192, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layer(x.flatten(1)) * self.factor


def read(encoder: nn.Module, **keys) -> torch.Tensor:
    return extract(encoder, digits(), 8, Normalization(HALF, HALF), **keys)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Extraction ---------------------------------------------------------------------------------------


def test_a_file_holds_the_features_but_for_scale_and_rounding(tmp_path):
    expected, path = read(Net()), tmp_path / "new" / "x.npy"
    mapped = read(Net(), file=path)
    assert mapped.dtype == torch.float16
    assert torch.equal(mapped, torch.from_numpy(np.load(path)))
    assert torch.equal(mapped, read_features(path))
    scale = 2.0 ** (mapped.float().norm() / expected.norm()).log2().round()
    torch.testing.assert_close(mapped.float() / scale, expected, rtol=2**-11, atol=1e-6)
    assert left_in(path.parent) == ["x.npy"]


@given(st.floats(-8, 8))
@settings(max_examples=10)
def test_any_size_of_features_keeps_float16s_precision(tmp_path_factory, exponent):
    factor = 10.0**exponent
    expected = read(Net(factor))
    chosen = scale_of(Net(factor), digits(), 8, Normalization(HALF, HALF))
    file = tmp_path_factory.mktemp("x") / "x.npy"
    mapped = read(Net(factor), file=file, scale=chosen).float()
    assert math.log2(chosen).is_integer()
    scale = 2.0 ** (mapped.norm() / expected.norm()).log2().round()
    close = (mapped / scale - expected).abs() <= 2**-11 * expected.abs() + 1e-6 * factor
    assert close.all()
    assert 8 < mapped.square().mean().sqrt() < 32


class Breaks(Net):
    """Fails at its second batch, or makes numbers that are none, or too large for the others."""

    def __init__(self, how: float | BaseException) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = super().forward(x)
        if self.calls == 2:
            if isinstance(self.how, BaseException):
                raise self.how
            h[3] *= self.how
        return h


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(module, "BATCH", 100)


def test_a_killed_extraction_leaves_no_file(tmp_path, small_batches):
    net = Breaks(KeyboardInterrupt()).train()
    with pytest.raises(KeyboardInterrupt):
        read(net, file=tmp_path / "x.npy")
    assert left_in(tmp_path) == []
    assert net.training
    read(Net(), file=tmp_path / "x.npy")
    whole = (tmp_path / "x.npy").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        read(Breaks(KeyboardInterrupt()), file=tmp_path / "x.npy")
    assert left_in(tmp_path) == ["x.npy"]
    assert (tmp_path / "x.npy").read_bytes() == whole


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(tmp_path, small_batches, value, in_file):
    rows = np.arange(360)[::-1].copy()
    with pytest.raises(UserError, match=r"^Image 256: its features are not finite"):
        read(Breaks(value), rows=rows, file=tmp_path / "x.npy" if in_file else None)
    assert left_in(tmp_path) == []


def test_what_float16_cannot_hold_is_refused(tmp_path, small_batches):
    with pytest.raises(UserError, match="differ too much in size"):
        read(Breaks(1e6), file=tmp_path / "x.npy")
    assert left_in(tmp_path) == []


class Leaky(Net):
    """Changes while it is read, even in eval mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layer.bias += 1e-3
        return super().forward(x)


def test_an_encoder_that_changes_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="not frozen"):
        read(Leaky(), file=tmp_path / "x.npy")
    assert left_in(tmp_path) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"x\.npy': features cannot be written: .*; free space"):
        read(Net(), file=tmp_path / "file" / "x.npy")


@pytest.mark.parametrize("keys", [{}, {"in_memory": False}])
@given(batch=st.integers(1, 400))
@settings(max_examples=5)
def test_batches_change_no_view(keys, batch):
    images, rows = digits(**keys), np.array([5, 3, 3, 350, *range(100)])
    expected = torch.cat(list(plain_views(images, 8)))[torch.from_numpy(rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH", batch)
        views = list(plain_views(images, 8, rows))
    assert max(len(part) for part in views) <= batch
    torch.testing.assert_close(torch.cat(views), expected, rtol=0, atol=1e-6)
    assert list(plain_views(images, 8, rows[:0])) == []


def share(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    module.BATCH, results, seen = 50, {}, {}
    for count in (1, 101, 360):
        net = Net()
        rows = np.arange(360)[::-1][:count].copy()
        results[f"memory {count}"] = read(net, rows=rows, shared=True)
        seen[count] = net.calls
        path = Path(folder) / f"{count}.npy"
        results[f"file {count}"] = read(net, rows=rows, shared=True, file=path).clone()
    # without `shared` a rank works for itself: no collective is entered
    results["alone"] = read(Net()) if rank == 0 else torch.zeros(1)
    try:
        read(Breaks(float("nan")), shared=True)
    except UserError as error:
        results["error"] = str(error)
    torch.save({**results, "calls": seen}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_ranks_share_the_images(tmp_path):
    in_ranks(share, str(tmp_path))
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in (0, 1)]
    whole = read(Net())
    for rank in ranks:
        for count in (1, 101, 360):
            expected = whole.flip(0)[:count]
            torch.testing.assert_close(rank[f"memory {count}"], expected)
            mapped = rank[f"file {count}"].float()
            scale = 2.0 ** (mapped.norm() / expected.norm()).log2().round()
            torch.testing.assert_close(mapped / scale, expected, rtol=1e-3, atol=1e-5)
        assert "not finite" in rank["error"]  # on every rank, so that none waits for another
    assert [rank["calls"] for rank in ranks] == [{1: 0, 101: 1, 360: 4}, {1: 1, 101: 2, 360: 4}]
    assert torch.equal(ranks[0]["alone"], whole)


# kNN ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixels() -> dict[str, torch.Tensor]:
    train, test = digits("train"), digits("test")
    return {
        "train": raw_pixels(train, 8), "y": train.labels,
        "test": raw_pixels(test, 8), "truth": test.labels,
    }  # fmt: skip


def in_a_map(path: Path, x: torch.Tensor) -> np.ndarray:
    np.save(path, x.half().numpy())
    return np.load(path, mmap_mode="r")


def test_knn_of_mapped_features_is_that_of_all_similarities(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(knn_module, "BANK", 100)
    monkeypatch.setattr(knn_module, "QUERIES", 70)
    bank, ask = (in_a_map(tmp_path / f"{s}.npy", pixels[s]) for s in ("train", "test"))
    found, place = neighbours(bank, ask, 20)
    a, b = (torch.nn.functional.normalize(torch.tensor(x).double(), dim=1) for x in (ask, bank))
    cosine = a @ b.T
    torch.testing.assert_close(found.double(), cosine.topk(20, 1).values, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.double(), cosine.gather(1, place), rtol=0, atol=1e-6)
    assert all(len(row.unique()) == 20 for row in place)
    votes = torch.zeros(len(ask), 10).double()
    near = cosine.topk(20, 1)
    votes.scatter_add_(1, pixels["y"][near.indices], (near.values / 0.07).exp())
    expected = float((votes.argmax(1) == pixels["truth"]).double().mean())
    accuracy = knn_accuracy(bank, pixels["y"], ask, pixels["truth"], ks=(1, 20))
    assert accuracy[20] == pytest.approx(expected, abs=1e-9)
    scaled = knn_accuracy(32 * pixels["train"], pixels["y"], ask, pixels["truth"], ks=(20,))
    assert scaled[20] == pytest.approx(expected, abs=1 / 360)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 12))
@settings(max_examples=20)
def test_with_k_of_the_whole_bank_every_row_is_found(pixels, rows, bank_chunk, query_chunk):
    bank, ask = (pixels[s] - pixels["train"].mean(0) for s in ("train", "test"))  # cosines < 0 too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn_module, "BANK", bank_chunk)
        patch.setattr(knn_module, "QUERIES", query_chunk)
        found, place = neighbours(bank[:rows], ask[:10], rows)
    cosine = torch.nn.functional.cosine_similarity(ask[:10, None], bank[None, :rows], dim=2)
    torch.testing.assert_close(found, cosine.sort(1, descending=True).values, rtol=0, atol=1e-5)
    assert all(sorted(row.tolist()) == list(range(rows)) for row in place)


def test_each_row_of_the_bank_is_read_once(pixels, monkeypatch):
    seen, plain = [], knn_module._unit
    monkeypatch.setattr(knn_module, "BANK", 500)
    monkeypatch.setattr(knn_module, "QUERIES", 100)

    def unit(x, device):
        seen.append(x.data_ptr())
        return plain(x, device)

    monkeypatch.setattr(knn_module, "_unit", unit)
    neighbours(pixels["train"], pixels["test"], 5)
    inside = {pixels["train"][i].data_ptr() for i in range(len(pixels["train"]))}
    assert sum(p in inside for p in seen) == 3


# Linear probe -------------------------------------------------------------------------------------


def standardised(pixels) -> tuple[np.ndarray, np.ndarray]:
    x, q = pixels["train"].double().numpy(), pixels["test"].double().numpy()
    std = x.std(0)
    std[std < 1e-6] = 1
    return (x - x.mean(0)) / std, (q - x.mean(0)) / std


@pytest.fixture(scope="module")
def optima(pixels) -> dict[float, LogisticRegression]:
    x, _ = standardised(pixels)
    model = LogisticRegression(max_iter=100_000, tol=1e-6, warm_start=True)
    found = {}
    for c in STRENGTHS:
        model.set_params(C=c).fit(x, pixels["y"].numpy())
        found[c] = LogisticRegression(C=c)
        found[c].coef_, found[c].intercept_ = model.coef_.copy(), model.intercept_.copy()
        found[c].classes_ = model.classes_
    return found


def labelled(x, y, space=None) -> linear._Labelled:
    x = module.as_tensor(x)
    return linear._Labelled(space or linear._Space(x, x.device), x, y.numpy(), 10)


@pytest.mark.parametrize("source", ["float32", "mapped float16"])
def test_every_strength_reaches_scikit_learns_optimum(pixels, optima, tmp_path, source):
    train, test = pixels["train"], pixels["test"]
    if source != "float32":
        # in another scale, as features on disk come
        train, test = (in_a_map(tmp_path / f"{n}.npy", 64 * x) for n, x in enumerate((train, test)))
    data = labelled(train, pixels["y"])
    asked = labelled(test, pixels["truth"], data.space)
    x, q = standardised(pixels)
    y, truth, start = pixels["y"].numpy(), pixels["truth"].numpy(), None
    for c, oracle in optima.items():
        start = data.solve(c, start)
        top1, top5 = asked.accuracy(start)
        assert top1 == pytest.approx(oracle.score(q, truth), abs=1.01 / 360), c
        assert top1 <= top5 <= 1
        ours = x @ start.w.double().numpy().T + start.b.numpy()
        ours = np.exp(ours - np.logaddexp.reduce(ours, axis=1, keepdims=True))

        def objective(p, w, c=c):
            return log_loss(y, p) + (w**2).sum() / (2 * c * len(y))

        best = objective(oracle.predict_proba(x), oracle.coef_)
        assert best - 1e-5 < objective(ours, start.w.double().numpy()) < best + 1e-4, c
        if c <= 0.1:  # weaker penalties leave the weights of digits all but undetermined
            assert np.abs(start.w.numpy() - oracle.coef_).max() < 0.02 * np.abs(oracle.coef_).max()


def probed(pixels, truth: torch.Tensor) -> tuple[linear.LinearResult, list[tuple]]:
    """The result on digits with these test labels, and all fits: rows, strength, weights."""
    fitted, plain = [], linear._Labelled.solve

    def solve(self, strength, *arguments, **keys):
        weights = plain(self, strength, *arguments, **keys)
        fitted.append((self.rows, strength, weights))
        return weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear._Labelled, "solve", solve)
        return linear_probe(pixels["train"], pixels["y"], pixels["test"], truth, seed=0), fitted


@pytest.fixture(scope="module")
def honest(pixels):
    return probed(pixels, pixels["truth"])


def test_the_chosen_strength_is_the_best_on_the_validation_part(honest):
    result, _ = honest
    assert list(result.validation) == list(STRENGTHS)
    best = max(result.validation.values())
    assert result.strength == min(c for c, v in result.validation.items() if v == best)
    assert result.validation[1.0] > result.validation[1e-4]


def test_the_validation_part_is_held_out_of_the_sweep_alone(pixels, honest):
    result, fitted = honest
    rows, strengths, _ = zip(*fitted, strict=True)
    assert strengths == (*STRENGTHS, result.strength, *[linear.FIXED] * 20)
    held = hold_out(pixels["y"].numpy(), linear.VALIDATION, 0)
    for used in rows[: len(STRENGTHS)]:
        assert np.array_equal(used, np.flatnonzero(~held))
    assert rows[len(STRENGTHS)] is None  # all of them
    check = labelled(pixels["train"], pixels["y"]).part(np.flatnonzero(held))
    sweep = fitted[: len(STRENGTHS)]
    for c, (_, _, weights) in zip(STRENGTHS, sweep, strict=True):
        assert check.accuracy(weights)[0] == result.validation[c]
    assert [len(used) for used in rows[-20:]] == [10] * 10 + [50] * 10


def test_few_labels_are_fitted_as_by_scikit_learn(pixels, honest):
    x, q = standardised(pixels)
    for shots, (mean, deviation) in honest[0].few.items():
        scores = []
        for number in range(10):
            rows = draw(pixels["y"].numpy(), 0, shots=shots, number=number).rows
            oracle = LogisticRegression(max_iter=1000).fit(x[rows], pixels["y"][rows])
            scores.append(oracle.score(q, pixels["truth"]))
        assert mean == pytest.approx(np.mean(scores), abs=1 / 360)
        assert deviation == pytest.approx(np.std(scores, ddof=1), abs=1 / 360)


def test_test_labels_move_neither_strength_nor_weights(pixels, honest):
    result, fitted = honest
    shuffled, again = probed(pixels, (pixels["truth"] + 1) % 10)
    assert (result.strength, result.validation) == (shuffled.strength, shuffled.validation)
    for (_, _, a), (_, _, b) in zip(fitted, again, strict=True):
        assert torch.equal(a.w, b.w)
        assert torch.equal(a.b, b.b)
    assert shuffled.top1 < 0.1 < result.top1


def blobs(counts: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """That many points of each class; names of classes have gaps."""
    random = np.random.default_rng(seed)
    centres = 2 * np.random.default_rng(9).normal(size=(len(counts), 7))
    y = np.repeat(np.arange(len(counts)), counts)
    x = centres[y] + random.normal(size=(len(y), 7)) + 100
    return torch.from_numpy(x).float(), torch.from_numpy(3 * y + 1)


@given(st.integers(1, 3000), st.integers(10, 200))
@settings(max_examples=10)
def test_chunks_change_no_loss_gradient_or_accuracy(numbers, rows):
    x, y = blobs([60] * 4)
    torch.manual_seed(0)
    weights = linear._Weights(torch.randn(4, 7), torch.randn(4))

    def measured() -> list:
        data = linear._Labelled(linear._Space(x, CPU), x, y.numpy() // 3, 4)
        part = data.part(np.arange(0, 240, 2))
        space = [data.space.mean, data.space.std, data.space.spread]
        return [*space, *data._loss(weights), *part._loss(weights), *part.accuracy(weights)]

    whole = measured()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "CHUNK", (numbers, numbers))
        patch.setattr(linear, "ROWS", rows)
        for a, b in zip(measured(), whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    z = (x - x.mean(0)) / x.std(0, correction=0)
    scores, labels = z @ weights.w.T + weights.b, y // 3
    for place, some in ((3, slice(None)), (6, slice(0, 240, 2))):
        expected = float(torch.nn.functional.cross_entropy(scores[some], labels[some]))
        assert whole[place] == pytest.approx(expected, rel=1e-5)
    assert whole[9] == float((scores[::2].argmax(1) == labels[::2]).double().mean())


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [
        ([3, 5, 4, 2], True),  # 14 images
        ([5, 1, 8], True),  # a class with one image stays in the fit, out of the validation part
        ([1, 1, 1, 1], False),
        ([1], False),
        ([6], True),
    ],
)
def test_tiny_training_parts(counts, chosen):
    x, y = blobs(counts)
    q, truth = blobs([30] * len(counts), seed=1)
    result = linear_probe(x, y, q, truth, 0)
    assert bool(result.validation) == chosen
    if not chosen:
        assert result.strength == linear.FIXED
    assert result.top1 > 0.6
    held = hold_out(y.numpy(), linear.VALIDATION, 0)
    _, left = np.unique(y.numpy()[~held], return_counts=True)
    assert len(left) == len(counts)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=30)
def test_the_validation_part_is_a_fifth_of_each_class(counts, seed):
    y = 3 * np.repeat(np.arange(len(counts)), counts)
    order = randomness.permutation(len(y), randomness.SPLIT, seed)
    held = hold_out(y, linear.VALIDATION, seed)
    for c, n in enumerate(counts):
        taken = max(1, round(n / 5)) if n > 1 else 0
        first = [i for i in order if y[i] == 3 * c][:taken]
        assert sorted(first) == np.flatnonzero(held & (y == 3 * c)).tolist()


def test_test_images_of_an_unknown_class_count_as_wrong():
    x, y = blobs([20, 20])
    q, truth = blobs([20, 20], seed=1)
    half = linear_probe(x, y, torch.cat([q, q]), torch.cat([truth, truth * 0 + 99]), 0)
    also = linear_probe(x, y, torch.cat([q, q]), torch.cat([truth, truth * 0 - 1]), 0)
    whole = linear_probe(x, y, q, truth, 0)
    assert half.top1 == also.top1 == whole.top1 / 2


def test_a_constant_feature_says_nothing_and_a_tiny_one_counts():
    x, y = blobs([30] * 3)
    q, truth = blobs([30] * 3, seed=1)
    plain = linear_probe(x, y, q, truth, 0)
    constant = torch.full((90, 1), 0.1) + 1e-9 * torch.randn(90, 1)
    more = linear_probe(torch.cat([x, constant], 1), y, torch.cat([q, 9 + constant], 1), truth, 0)
    assert more.top1 == pytest.approx(plain.top1, abs=1.01 / 90)
    small = linear_probe(1e-12 * x.double(), y, 1e-12 * q.double(), truth, 0)
    assert small.top1 == pytest.approx(plain.top1, abs=1.01 / 90)


def test_features_that_are_not_finite_fit_nothing():
    x, y = blobs([10, 10])
    x[3, 2] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        linear_probe(x, y, x, y, 0)


def test_reading_leaves_the_encoder_and_products_as_they_were():
    net = Net()
    before = weights_hash(net)
    torch.set_float32_matmul_precision("high")
    try:
        x = read(net)
        neighbours(x, x, 3)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert weights_hash(net) == before


ALONE = """
import numpy, torch
from threadpoolctl import threadpool_info, threadpool_limits
from selfsight.evaluate import linear

threads, loss = set(), linear._Labelled._loss

def spied(*args):
    threads.update(lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas")
    return loss(*args)

linear._Labelled._loss = spied
x, y = torch.randn(60, 4), torch.arange(60) % 3
linear.linear_probe(x, y, x, y, 0, shots=())
print(sorted(threads))
threads.clear()
linear.threadpool_limits = lambda *args, **keys: threadpool_limits(None)
linear.linear_probe(x, y, x, y, 0, shots=())
print(sorted(threads))
"""


def test_the_solver_uses_one_thread_of_each_blas():
    """In a process of its own: a library that is loaded after the limit was set escapes it. The
    second line is without the limit."""
    env = os.environ | {"OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[1]", "[2]"]
