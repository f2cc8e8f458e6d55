"""Evaluation against oracles, and attempts to make it lie."""

import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

import selfsight
from selfsight import metrics
from selfsight.batch import Normalization
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.sources.open import open_source
from selfsight.encoders.artifact import read_network, tensors_hash, weights_hash
from selfsight.encoders.encoder import load_encoder
from selfsight.errors import UserError
from selfsight.evaluate import knn as knn_module
from selfsight.evaluate.features import extract, plain_views, raw_pixels
from selfsight.evaluate.knn import knn_accuracy, neighbours
from selfsight.evaluate.linear import linear_probe
from selfsight.evaluate.protocols import read_results
from selfsight.evaluate.protocols.target import open_target
from selfsight.files import unsealed
from selfsight.logging.log import read_metrics
from selfsight.methods import METHODS
from selfsight.pretraining.build import build_method
from tests.train.test_train import config_of

CPU = torch.device("cpu")


def blobs(n: int, classes: int = 4, d: int = 8, seed: int = 0, spread: float = 1.0):
    """Labelled points around class centres; the centres do not depend on the seed."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(123).normal(size=(classes, d))
    y = random.integers(0, classes, n)
    x = centres[y] + spread * random.normal(size=(n, d))
    return x.astype(np.float32), y.astype(np.int64)


def as_tensors(*arrays):
    return [torch.from_numpy(a) for a in arrays]


@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_equals_scikit_learns_brute_force(k):
    x, y = blobs(300)
    q, truth = blobs(200, seed=1)
    oracle = KNeighborsClassifier(
        k, algorithm="brute", metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(x, y)
    ours = knn_accuracy(*as_tensors(x, y, q, truth), ks=(k,))
    assert ours[k] == pytest.approx(oracle.score(q, truth), abs=1e-6)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 50), st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_chunks_change_no_neighbour(k, queries, bank_chunk, query_chunk):
    x, _ = blobs(100)
    q, _ = blobs(queries, seed=1)
    bank, ask = as_tensors(x, q)
    whole, _ = neighbours(bank, ask, k)
    before = knn_module.BANK, knn_module.QUERIES
    knn_module.BANK, knn_module.QUERIES = bank_chunk, query_chunk
    try:
        pieces, places = neighbours(bank, ask, k)
    finally:
        knn_module.BANK, knn_module.QUERIES = before
    torch.testing.assert_close(whole, pieces)
    cosine = nn.functional.cosine_similarity(ask[:, None], bank[places], dim=2)
    torch.testing.assert_close(cosine, pieces, rtol=1e-4, atol=1e-5)


def test_knn_with_a_k_above_the_bank():
    x, y = blobs(30)
    accuracy = knn_accuracy(*as_tensors(x, y, x, y), ks=(20, 200))
    assert set(accuracy) == {20, 200}


def test_linear_probe_finds_scikit_learns_optimum():
    x, y = blobs(600, spread=0.8)
    q, truth = blobs(400, seed=1, spread=0.8)
    result = linear_probe(x, y, q, truth, seed=0)
    mean, std = x.mean(0), x.std(0)
    best = max(
        LogisticRegression(C=c, max_iter=2000)
        .fit((x - mean) / std, y)
        .score((q - mean) / std, truth)
        for c in (0.01, 0.1, 1, 10, 100)
    )
    assert result.top1 > best - 0.02
    assert result.top5 == 1.0
    assert result.few[1][0] < result.few[5][0] <= result.top1 + 0.05


def test_the_probe_cannot_see_the_test_labels():
    x, y = blobs(300)
    q, truth = blobs(200, seed=1)
    honest = linear_probe(x, y, q, truth, seed=0)
    shuffled = linear_probe(x, y, q, (truth + 1) % 4, seed=0)
    assert honest.strength == shuffled.strength
    assert shuffled.top1 < 0.3 < honest.top1


def test_top_k():
    scores = torch.tensor([[0.1, 0.5, 0.4], [0.9, 0.06, 0.04]])
    labels = torch.tensor([2, 2])
    assert metrics.top_k(scores, labels, 1) == 0
    assert metrics.top_k(scores, labels, 2) == 0.5
    assert metrics.top_k(scores, labels, 5) == 1


def test_alignment_and_uniformity_against_the_papers_formulas():
    a, b = torch.randn(16, 8), torch.randn(16, 8)
    u, v = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    assert metrics.alignment(a, 3 * a).item() == pytest.approx(0, abs=1e-6)
    assert metrics.alignment(a, -a).item() == pytest.approx(4)
    assert metrics.alignment(a, b).item() == pytest.approx((2 - 2 * (u * v).sum(1)).mean().item())
    pairs = [math.exp(-2 * (u[i] - u[j]).norm() ** 2) for i in range(16) for j in range(i)]
    assert metrics.uniformity(a).item() == pytest.approx(
        math.log(sum(pairs) / len(pairs)), rel=1e-4
    )
    assert metrics.uniformity(torch.ones(8, 3)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(20, 8), (8, 20)])
def test_rank_me_against_the_papers_formula(shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    p = torch.linalg.svdvals(x.double())
    p = p / p.sum() + 1e-7
    assert metrics.rank_me(x).item() == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-6)
    assert metrics.rank_me(torch.ones(20, 8)).item() == pytest.approx(1, abs=1e-3)
    assert metrics.rank_me(torch.eye(8)).item() == pytest.approx(8, rel=1e-4)
    assert math.isnan(metrics.rank_me(torch.full((4, 4), torch.nan)).item())


def test_feature_std_tells_collapse():
    torch.manual_seed(0)
    assert metrics.feature_std(torch.ones(64, 32)) < 1e-3
    assert metrics.feature_std(torch.randn(4096, 256)) == pytest.approx(1, abs=0.02)


# Features -----------------------------------------------------------------------------------------


def digits(split: str = "test", **keys) -> Images:
    config = DataConfig(**keys)
    return Images(open_source(config, split), config, CPU)


class Leaky(nn.Module):
    """An encoder that changes while it is read, even in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return x.mean((2, 3))


def test_an_encoder_that_changes_is_refused():
    with pytest.raises(UserError, match="not frozen"):
        extract(Leaky(), digits(), 8, Normalization((0.5,) * 3, (0.5,) * 3))


def test_batch_norm_is_in_eval_mode_and_comes_back_in_training():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).train()
    before = weights_hash(net)
    a = extract(net, digits(), 8, Normalization((0.5,) * 3, (0.5,) * 3))
    b = extract(net, digits(), 8, Normalization((0.5,) * 3, (0.5,) * 3), rows=np.array([7]))
    torch.testing.assert_close(a[7:8], b)  # a batch's other images do not matter
    assert net.training
    assert weights_hash(net) == before


def test_hash_sees_every_weight_and_buffer():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = weights_hash(net)
    net[1].running_mean[0] = 1e-30
    assert weights_hash(net) != before


def test_plain_views_decoded_or_kept_are_the_images():
    kept = torch.cat(list(plain_views(digits(), 8)))
    source = open_source(DataConfig(), "test")
    expected = torch.stack([torch.from_numpy(source.read(i)).permute(2, 0, 1) for i in range(360)])
    torch.testing.assert_close(kept, expected.float() / 255, rtol=0, atol=1e-5)
    assert raw_pixels(digits(), 8).shape == (360, 192)


# Encoder files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return selfsight.pretrain(
        config_of(tmp_path_factory.mktemp("runs") / "a", "max_steps=3"), True
    ).path


def rewrite(run, path, change) -> None:
    tensors = load_file(run / "encoder.safetensors")
    with safe_open(run / "encoder.safetensors", "pt") as file:
        metadata = file.metadata()
    change(tensors, metadata)
    if "selfsight" in metadata:  # with the hash of these weights, as one who made them himself
        described = unsealed(json.loads(metadata["selfsight"]), path)
        described["weights_sha256"] = tensors_hash(tensors)
        metadata["selfsight"] = json.dumps(described)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop("conv1.weight"), "it lacks conv1.weight"),
        (lambda t, m: t.update(extra=torch.zeros(1)), "it has also extra"),
        (
            lambda t, m: t.update({"conv1.weight": torch.zeros(1, 3, 4, 4)}),
            "of other shape: conv1.weight",
        ),
        (lambda t, m: m.pop("selfsight"), "not written by Selfsight"),
    ],
)
def test_nothing_partial_loads(run, tmp_path, change, message):
    path = tmp_path / "encoder.safetensors"
    rewrite(run, path, change)
    with pytest.raises(UserError, match=message):
        load_encoder(path)


def test_load_encoder(run, tmp_path):
    encoder = selfsight.load_encoder(run)
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    image.save(tmp_path / "a.png")
    features = encoder.embed([tmp_path / "a.png", image, image.resize((200, 300))])
    assert features.shape == (3, encoder.num_features)
    torch.testing.assert_close(features[0], features[1])
    with pytest.raises(UserError, match="holds no encoder"):
        selfsight.load_encoder(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="not a readable encoder"):
        selfsight.load_encoder(tmp_path / "b.safetensors")


def test_embed_turns_a_picture_as_its_file(run, tmp_path):
    """The same photograph, on its side by EXIF, given as a file and as an opened image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        a, b = selfsight.load_encoder(run).embed([tmp_path / "turned.png", opened])
    assert torch.equal(a, b)


def test_embed_sees_what_evaluation_sees(run):
    encoder, images = selfsight.load_encoder(run), digits()
    size, mean, std = (encoder.description[k] for k in ("image_size", "mean", "std"))
    expected = extract(encoder.backbone, images, size, Normalization(mean, std), rows=np.arange(5))
    source = open_source(DataConfig(), "test")
    ours = encoder.embed([Image.fromarray(source.read(i)) for i in range(5)])
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)  # batches may round otherwise


@pytest.mark.parametrize("turn", [1, 6])
def test_embed_decodes_photographs_as_evaluation_does(run, tmp_path, turn):
    """JPEG files, as they are and on their side by EXIF: the decoders' pixels are not equal."""
    exif = Image.Exif()
    exif[0x0112] = turn
    pixels = np.random.default_rng(0).integers(0, 256, (4, 30, 40, 3), np.uint8)
    files = [tmp_path / "images" / f"{n}.jpg" for n in range(4)]
    files[0].parent.mkdir()
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).resize((400, 300), 3).save(file, quality=70, exif=exif)
    encoder, config = selfsight.load_encoder(run), DataConfig(path=str(tmp_path / "images"))
    images = Images(open_source(config, "train"), config, CPU)
    size, mean, std = (encoder.description[k] for k in ("image_size", "mean", "std"))
    expected = extract(encoder.backbone, images, size, Normalization(mean, std))
    torch.testing.assert_close(encoder.embed(files), expected, rtol=1e-5, atol=1e-6)


def test_embed_names_a_file_that_is_no_image(run, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    for name, reason in (("notes.txt", "not an image"), ("nowhere.png", "No such file")):
        with pytest.raises(UserError, match=f"{name}: {reason}"):
            selfsight.load_encoder(run).embed([tmp_path / name])


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_embed_takes_what_people_have(run, tmp_path):
    """One or several paths, arrays and images, none, or a generator; in batches, in order."""
    encoder = selfsight.load_encoder(run)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    images = [Image.fromarray(x) for x in pixels]
    images[0].save(tmp_path / "a.png")
    expected = torch.cat([encoder.embed(image) for image in images])
    how = {"rtol": 1e-5, "atol": 1e-6}
    for several in (images, iter(images), list(pixels), pixels):
        torch.testing.assert_close(encoder.embed(several, batch_size=3), expected, **how)
    for one in (tmp_path / "a.png", str(tmp_path / "a.png"), pixels[0], images[0]):
        torch.testing.assert_close(encoder.embed(one), expected[:1], **how)
    gray = np.repeat(pixels[0, :, :, :1], 3, 2)
    for form in (gray[..., 0], gray[..., :1]):
        torch.testing.assert_close(encoder.embed(form), encoder.embed(gray), **how)
    assert encoder.embed([]).shape == (0, encoder.num_features)
    for wrong in ([3], [None], [pixels[0].astype(float)], [pixels[:2]], [[1, 2]]):
        with pytest.raises(UserError, match=r"embed: (takes paths|an array must be uint8)"):
            encoder.embed(wrong)


def test_embed_holds_one_batch_at_a_time(run):
    encoder, seen = selfsight.load_encoder(run), []

    def images():
        for n in range(10):
            seen.append(n)
            yield np.full((8, 8, 3), n, np.uint8)

    sizes = []
    encoder.backbone.register_forward_pre_hook(lambda _, x: sizes.append((len(x[0]), len(seen))))
    assert len(encoder.embed(images(), batch_size=4)) == 10
    assert sizes == [(4, 4), (4, 8), (2, 10)]


def test_a_colleague_can_read_the_files_of_a_run(tmp_path):
    before = os.umask(0o022)
    try:
        run = selfsight.pretrain(
            config_of(tmp_path / "a", "max_steps=1", "save_as=mine"), True
        ).path
    finally:
        os.umask(before)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"encoder.safetensors", "mine.safetensors"} <= {path.name for path in files}
    assert {path.name for path in files if path.stat().st_mode & 0o777 != 0o644} == set()


# Whole evaluations --------------------------------------------------------------------------------


def test_knn_of_a_run(run):
    results = selfsight.knn(run)
    assert [r.evaluated for r in results] == ["encoder", "untrained", "pixels"]
    assert results[0].weights_sha256 == selfsight.load_encoder(run).description["weights_sha256"]
    assert results[1].weights_sha256 not in (None, results[0].weights_sha256)
    assert results[2].metrics["k20"] > 0.9  # pixels are good at digits
    assert results[0].data["train"] == 1437
    selfsight.knn(run)
    records = read_results(run)
    assert len(records) == 3, "the same evaluation again is the same record"
    stamped = {"protocol", "version", "metrics", "settings", "seed", "cost", "data", "overlap"}
    assert all(stamped <= r.keys() for r in records)


@pytest.mark.parametrize("method", METHODS)
def test_the_untrained_encoder_is_the_method_before_its_first_step(tmp_path, method):
    """Every method: with a kept head, with fixed positions, with neither; by the file alone."""
    config = config_of(tmp_path / "run", "max_steps=1", method=method)
    run = selfsight.pretrain(config, True).path
    expected = weights_hash(build_method(config).backbone)
    alone = tmp_path / "alone" / "encoder.safetensors"
    alone.parent.mkdir()
    alone.write_bytes((run / "encoder.safetensors").read_bytes())
    assert weights_hash(read_network(alone).untrained().build()) == expected
    targets = [open_target(where, [], None) for where in (run, alone)]
    assert [weights_hash(target.untrained.build()) for target in targets] == [expected] * 2
    assert targets[0].base == targets[1].base


def test_unlabelled_data_is_refused(run, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((9, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="has no labels"):
        selfsight.knn(run, [f"data.path={tmp_path / 'x.npy'}"])
    with pytest.raises(UserError, match="data=3"):
        selfsight.knn(run, ["data=3"])


def test_an_evaluation_may_run_on_another_device(run, tmp_path):
    """A run that names the GPU it was made on can be measured where there is none."""
    for name in ("encoder.safetensors", "metrics.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    text = (run / "config.yaml").read_text().replace("device: cpu", "device: cuda:77")
    (tmp_path / "config.yaml").write_text(text)
    assert selfsight.knn(tmp_path)[0].metrics


def test_an_unfinished_run_is_measured_as_it_stands(tmp_path, capsys, monkeypatch):
    """By its newest checkpoint, or by one that is named; the results say at which step."""
    keys = ["epochs=2", "checkpoint.every_steps=5", "checkpoint.keep=9", "method.output_dim=8"]
    run = selfsight.pretrain(config_of(tmp_path / "a", *keys), True).path
    finished = selfsight.knn(run)
    half = shutil.copytree(run, tmp_path / "half")
    for file in ("encoder.safetensors", "results.json"):
        (half / file).unlink()
    newest, (first, *_) = run / "checkpoints", sorted((half / "checkpoints").glob("step-*.pt"))
    assert len(list(newest.iterdir())) > 2
    results = selfsight.knn(half)
    assert [r.metrics for r in results] == [r.metrics for r in finished]
    assert results[0].settings == {"step": 44}
    assert "The encoder of step 44 of 44" in capsys.readouterr().err
    early = selfsight.knn(first)
    state = torch.load(first, weights_only=True)["method"]
    backbone = selfsight.load_encoder(run).backbone
    backbone.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    )
    assert early[0].weights_sha256 == weights_hash(backbone) != results[0].weights_sha256
    assert early[0].settings == {"step": 5}
    assert not (half / "results.json").exists(), "a checkpoint's results are not the run's"
    records = read_results(tmp_path / "half-step-5")
    assert {r["settings"]["step"] for r in records} == {5}
    seconds = {r["step"]: r["seconds"] for r in read_metrics(half / "metrics.jsonl")}
    assert records[0]["cost"]["pretrain_seconds"] == seconds[5] < seconds[44]
    monkeypatch.chdir(half)
    assert selfsight.knn(".")[0].settings == {"step": 44}
    assert (tmp_path / "half-step-44" / "results.json").exists()
    for file in (half / "checkpoints").iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        selfsight.knn(half)


def test_what_is_no_run_is_refused(run, tmp_path):
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(UserError, match="not finished"):
        selfsight.knn(tmp_path)
    with pytest.raises(UserError, match="not finished"):
        selfsight.load_encoder(tmp_path)
    with pytest.raises(UserError, match="no such run folder"):
        selfsight.linear(tmp_path / "nowhere")
    shutil.copytree(run / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"no encoder\.json in"):
        selfsight.knn(tmp_path)
