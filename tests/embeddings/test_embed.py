"""`selfsight embed`: the features are those of an evaluation, however the work is interrupted."""

import io
import json
import os
import shutil
import signal
import tarfile
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.neighbors import NearestNeighbors
from torch import nn

import selfsight
from selfsight.batch import Normalization
from selfsight.data import identity as identity_module
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.sources.open import open_source
from selfsight.embeddings import embed as embed_module
from selfsight.embeddings import nearest as nearest_module
from selfsight.embeddings import parts as parts_module
from selfsight.embeddings import reading
from selfsight.embeddings.embed import Options, embed
from selfsight.embeddings.images import Split
from selfsight.embeddings.nearest import nearest, project
from selfsight.embeddings.table import read_table
from selfsight.encoders.artifact import Network
from selfsight.errors import UserError
from selfsight.evaluate import features as features_module
from selfsight.evaluate.features import extract
from selfsight.processes import Stopped
from tests.processes import Started, two_ranks
from tests.train.test_train import config_of

CPU = torch.device("cpu")
KEYS = ["device=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    return selfsight.pretrain(config_of(folder, "max_steps=2", method="simclr"), True).path


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(features_module, "BATCH", 100)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Photographs of several sizes in two classes, and a test split."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 12)):
        for n in range(count):
            path = root / split / "ab"[n % 2] / f"{n:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = rng.integers(0, 256, (5, 6, 3), np.uint8)
            Image.fromarray(small).resize((110 + 7 * n, 100 + n)).save(path)
    return root


def expected(run: Path, split: str = "test", keys: DataConfig = DataConfig()) -> torch.Tensor:  # noqa: B008
    encoder = selfsight.load_encoder(run)
    size, mean, std = (encoder.description[k] for k in ("image_size", "mean", "std"))
    images = Images(open_source(keys, split), keys, CPU)
    return extract(encoder.backbone, images, size, Normalization(mean, std))


def written(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


# The table ----------------------------------------------------------------------------------------


def test_the_features_are_those_of_an_evaluation(run, tmp_path):
    done = embed(run, tmp_path / "f.parquet", KEYS)
    table = read_table(tmp_path / "f.parquet")
    both = torch.cat([expected(run, split) for split in ("train", "test")])
    np.testing.assert_array_equal(table.features, both.numpy())
    assert (done.rows, done.width, done.broken) == (1797, both.shape[1], [])
    assert table.splits == ["train"] * 1437 + ["test"] * 360
    assert table.paths[-1] == "digits test 359"
    assert table.labels == [
        str(label)
        for split in ("train", "test")
        for label in open_source(DataConfig(), split).labels
    ]
    about = table.description
    assert about["weights_sha256"] == selfsight.load_encoder(run).description["weights_sha256"]
    assert about["splits"]["test"]["images"] == 360
    assert (about["num_features"], about["image_size"]) == (16, [16, 16])
    assert (about["rows"], about["broken"]) == (1797, 0)
    assert written(tmp_path) == ["f.parquet"]


@pytest.mark.parametrize("ending", [".npz", ".csv"])
def test_every_format_holds_the_same(run, tmp_path, ending):
    embed(run, tmp_path / f"f{ending}", KEYS, Options(split="test", neighbours=3), quiet=True)
    table = read_table(tmp_path / f"f{ending}")
    np.testing.assert_array_equal(table.features, expected(run).numpy())
    assert table.splits is None
    assert table.neighbours.ids.shape == (360, 3)


def test_paths_of_photographs_can_be_opened_and_are_shown_as_in_an_evaluation(
    run, photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(photos.parent)  # a relative path becomes absolute
    embed(run, tmp_path / "f.npz", [f"data.path={photos.name}", *KEYS])
    table = read_table(tmp_path / "f.npz")
    assert table.splits == ["train"] * 40 + ["test"] * 12
    monkeypatch.chdir(tmp_path)
    ours = selfsight.load_encoder(run).embed(table.paths)
    torch.testing.assert_close(torch.from_numpy(table.features), ours, rtol=1e-4, atol=1e-5)
    assert [Path(p).parent.name for p in table.paths] == table.labels
    keys = DataConfig(path=str(photos))
    both = torch.cat([expected(run, split, keys) for split in ("train", "test")])
    np.testing.assert_array_equal(table.features, both.numpy())


def sources(photos: Path, folder: Path) -> dict[str, str]:
    """The test photographs as a list of paths, as arrays, as a pack, and as a shard."""
    files = sorted((photos / "val").rglob("*.jpg"))
    (folder / "list.txt").write_text("".join(f"{file} {file.parent.name}\n" for file in files))
    pixels = np.stack([np.asarray(Image.open(file).resize((100, 100))) for file in files])
    np.savez(folder / "arrays.npz", images=pixels, labels=np.arange(len(files)) % 2)
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for file in files:
            about = tarfile.TarInfo(f"{file.stem}.jpg")
            about.size = file.stat().st_size
            tar.addfile(about, io.BytesIO(file.read_bytes()))
    return {"list": "list.txt", "arrays": "arrays.npz", "shard": "shard.tar", "pack": "pack"}


@pytest.mark.parametrize("kind", ["list", "arrays", "shard", "pack"])
def test_images_come_in_any_form_that_data_path_takes(run, photos, tmp_path, command, kind):
    path = sources(photos, tmp_path)[kind]
    if kind == "pack":
        assert command("pack", "list.txt", "-o", "pack", cwd=tmp_path).returncode == 0
    done = command("embed", str(run), path, "-o", "f.npz", *KEYS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    keys = DataConfig(path=str(tmp_path / path))
    found = [
        expected(run, split, keys).numpy()
        for split in ("train", "test")
        if open_source(keys, split) is not None
    ]
    table = read_table(tmp_path / "f.npz")
    np.testing.assert_array_equal(table.features, np.concatenate(found))
    assert len(table) == 12
    names = {"arrays": f"{tmp_path / 'arrays.npz'} ", "shard": f"{tmp_path / 'shard.tar'} "}
    assert table.paths[0].startswith(names.get(kind, str(photos)))


def test_deep_images_are_read_with_the_range_of_the_pretraining(tmp_path):
    for split, count in (("train", 70), ("test", 9)):
        for n in range(count):
            image = np.random.default_rng(n).integers(0, 1000, (12, 12)).astype(np.uint16)
            (tmp_path / "x" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "x" / split / f"{n:02}.png")
    keys = ("max_steps=1", "data.bits=16", "data.range=auto", f"data.path={tmp_path / 'x'}")
    run = selfsight.pretrain(config_of(tmp_path / "r", *keys, method="simclr"), True).path
    embed(run, tmp_path / "f.npz", [f"data.path={tmp_path / 'x'}", *KEYS])
    table = read_table(tmp_path / "f.npz")
    ours = selfsight.load_encoder(run).embed(table.paths)
    torch.testing.assert_close(torch.from_numpy(table.features), ours, rtol=1e-4, atol=1e-5)


def test_other_images_are_not_limited_as_those_of_the_run(photos, tmp_path):
    keys = ("max_steps=1", "data.limit=100", "data.labels=false")
    run = selfsight.pretrain(config_of(tmp_path / "r", *keys, method="simclr"), True).path
    assert embed(run, tmp_path / "own.npz", KEYS).rows == 100 + 360
    assert read_table(tmp_path / "own.npz").labels is None
    assert embed(run, tmp_path / "other.npz", [f"data.path={photos}", *KEYS]).rows == 52
    assert read_table(tmp_path / "other.npz").labels is not None


def test_a_checkpoint_of_another_library_is_read_with_its_images(photos, tmp_path):
    import timm

    model = timm.create_model("resnet18", num_classes=0, layers=[1, 1, 1, 1])
    save_file(model.state_dict(), tmp_path / "theirs.safetensors")
    keys = ["backbone.name=resnet18", "backbone.options={layers: [1, 1, 1, 1]}", "image_size=32"]
    where = tmp_path / "theirs.safetensors"
    embed(where, tmp_path / "f.npz", [*keys, f"data.path={photos}", *KEYS], Options(split="test"))
    assert read_table(tmp_path / "f.npz").width == 512
    with pytest.raises(UserError, match=r"No images: .* name some"):
        embed(where, tmp_path / "g.npz", keys)


# Work that is stopped -----------------------------------------------------------------------------


class Cut(BaseException):
    """As a power cut."""


def counted(monkeypatch) -> list[int]:
    """The numbers of the batches that are written from now on."""
    write, seen = parts_module.Writer.write, []

    def note(self, number, features):
        seen.append(number)
        write(self, number, features)

    monkeypatch.setattr(parts_module.Writer, "write", note)
    return seen


def cut_after(monkeypatch, batches: int, how: BaseException | None = None) -> None:
    write, calls = parts_module.Writer.write, []

    def crash(self, number, features):
        calls.append(number)
        if len(calls) > batches:
            raise how or Cut()
        write(self, number, features)

    monkeypatch.setattr(parts_module.Writer, "write", crash)


@pytest.fixture
def saved_at_once(monkeypatch):
    monkeypatch.setattr(parts_module, "EVERY", 0.0)
    monkeypatch.setattr(parts_module, "SHARE", 0.0)


@pytest.mark.parametrize("cuts", [[0], [1], [9], [3, 0, 5]])
def test_interrupted_equals_uninterrupted(
    run, tmp_path, monkeypatch, small_batches, saved_at_once, cuts
):
    options = Options(projection="pca", neighbours=2)
    embed(run, tmp_path / "whole.parquet", KEYS, options)
    for batches in cuts:
        with monkeypatch.context() as patch:
            cut_after(patch, batches)
            with pytest.raises(Cut):
                embed(run, tmp_path / "f.parquet", KEYS, options)
        assert "f.parquet" not in written(tmp_path)
    seen = counted(monkeypatch)
    embed(run, tmp_path / "f.parquet", KEYS, options)
    assert len(seen) == 15 + 4 - sum(cuts)  # of 1437 and of 360 images
    assert (tmp_path / "f.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert written(tmp_path) == ["f.parquet", "whole.parquet"]


def test_other_images_options_or_encoders_never_mix(
    run, tmp_path, monkeypatch, small_batches, saved_at_once
):
    output = tmp_path / "f.npz"
    with monkeypatch.context() as patch:
        cut_after(patch, 4)
        with pytest.raises(Cut):
            embed(run, output, KEYS)
    seen = counted(monkeypatch)
    for keys, options, batches in (
        (["data.limit=300"], Options(), 3 + 4),
        (["image_size=8"], Options(), 15 + 4),
        (["precision=bf16"], Options(), 15 + 4),
        ([], Options(layers=[-2]), 15 + 4),
        ([], Options(split="train"), 15),
        ([], Options(neighbours=1), 15 + 4 - 4),  # of the same features
    ):
        seen.clear()
        embed(run, output, [*KEYS, *keys], options)
        assert len(seen) == batches, (keys, options)


def test_images_that_changed_since_are_read_again(
    run, photos, tmp_path, monkeypatch, saved_at_once
):
    monkeypatch.setattr(features_module, "BATCH", 16)
    monkeypatch.setattr(identity_module, "SAMPLE", 2)  # the first and the last alone
    mine = shutil.copytree(photos, tmp_path / "photos")
    for n, stamp in enumerate(("one", "two")):
        monkeypatch.setattr(reading, "stamp_of", lambda _, stamp=stamp: stamp)
        with monkeypatch.context() as patch:
            if not n:
                cut_after(patch, 2)
            try:
                embed(run, tmp_path / "f.npz", [f"data.path={mine}", *KEYS])
            except Cut:
                path = next((mine / "train").rglob("02.jpg"))
                Image.new("RGB", (300, 200)).save(path)
    keys = DataConfig(path=str(mine))
    both = torch.cat([expected(run, split, keys) for split in ("train", "test")])
    np.testing.assert_array_equal(read_table(tmp_path / "f.npz").features, both.numpy())


def test_images_that_were_repaired_do_not_count_as_broken(tmp_path):
    parts = parts_module.Parts(tmp_path, np.array([[0, 2]]), 3)
    parts.prepare("one")
    listed = reading.bad_file(parts, Split("train", None, {}))
    listed.write_text("a.png\tbroken\n")
    parts.prepare("one")
    assert listed.exists()
    parts.prepare("two")
    assert not listed.exists()


def test_parts_that_were_damaged_are_made_again(
    run, tmp_path, monkeypatch, small_batches, saved_at_once
):
    embed(run, tmp_path / "whole.npz", KEYS)
    with monkeypatch.context() as patch:
        cut_after(patch, 6)
        with pytest.raises(Cut):
            embed(run, tmp_path / "f.npz", KEYS)
    (folder,) = tmp_path.glob(".f.npz.*.parts")
    with (folder / "features.f32").open("r+b") as file:
        file.seek(5000)
        file.write(b"\x12\x34")
    embed(run, tmp_path / "f.npz", KEYS)
    assert (tmp_path / "f.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_killed_command_goes_on(run, tmp_path):
    command = ["embed", str(run), "-o", "f.parquet", *KEYS]
    process = Started(*command, cwd=tmp_path)
    while not list(tmp_path.glob(".f.parquet.*.parts/marks")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(9)
    process.wait()
    done = Started(*command, cwd=tmp_path).wait()
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Wrote f.parquet: 1,797 images, 16 features each\n"
    embed(run, tmp_path / "whole.parquet", KEYS)
    assert (tmp_path / "f.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_signal_saves_what_is_done(run, tmp_path, monkeypatch, small_batches, command):
    keys = ["embed", str(run), "-o", "f.npz", *KEYS]
    with monkeypatch.context() as patch:
        cut_after(patch, 7, Stopped(signal.SIGTERM))
        done = command(*keys, cwd=tmp_path)
    assert done.returncode == 128 + signal.SIGTERM
    assert "Stopped; what is done is saved. Resume with: selfsight embed" in done.stderr
    seen = counted(monkeypatch)
    assert command(*keys, cwd=tmp_path).returncode == 0
    assert len(seen) == 19 - 7


def test_two_ranks_write_the_file_of_one(run, photos, tmp_path):
    keys = [str(photos), *KEYS, "--neighbors", "3"]
    for output, start in (("two.parquet", two_ranks), ("one.parquet", None)):
        command = ["embed", str(run), *keys, "-o", output]
        done = start(*command, cwd=tmp_path) if start else [Started(*command, cwd=tmp_path).wait()]
        assert [process.returncode for process in done] == [0] * len(done), done[0].stderr
        assert [process.stdout.count("Wrote") for process in done] == [1, 0][: len(done)]
    assert (tmp_path / "two.parquet").read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert written(tmp_path) == ["one.parquet", "two.parquet"]


def test_two_ranks_refuse_a_mistake_together(run, tmp_path):
    done = two_ranks("embed", str(run), *KEYS, "--layers", "99", "-o", "f.npz", cwd=tmp_path)
    assert [process.returncode for process in done] == [2, 2]
    assert "layers=99" in done[0].stderr


def test_features_of_few_batches_are_in_memory(run, tmp_path, monkeypatch):
    """Of 72 batches, what is alive whenever one is written."""
    monkeypatch.setattr(features_module, "BATCH", 25)
    batches, live = [], []
    given = features_module.feature_batches

    def watched(*arguments):
        for batch in given(*arguments):
            batches.append(weakref.ref(batch))
            live.append(sum(ref() is not None for ref in batches))
            yield batch

    monkeypatch.setattr(reading, "feature_batches", watched)
    embed(run, tmp_path / "f.npz", KEYS)
    assert len(live) == 58 + 15
    assert max(live) <= 3


# What must not be written -------------------------------------------------------------------------


class Odd(nn.Module):
    """An encoder that changes, or whose features are no numbers."""

    def __init__(self, inner: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how, self.num_features = inner, how, inner.num_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "changes":
            next(self.inner.parameters()).data += 1e-3
        h = self.inner(x)
        return h / 0 if self.how == "infinite" else h


@pytest.mark.parametrize(
    ("how", "message"), [("changes", "not frozen"), ("infinite", "not finite")]
)
@pytest.mark.parametrize("every", [0.0, 100.0])
def test_an_encoder_that_cannot_be_trusted_leaves_nothing(
    run, tmp_path, monkeypatch, small_batches, how, message, every
):
    build = Network.build
    monkeypatch.setattr(parts_module, "EVERY", every)
    monkeypatch.setattr(Network, "build", lambda self: Odd(build(self), how))
    with pytest.raises(UserError, match=message):
        embed(run, tmp_path / "f.npz", KEYS)
    (folder,) = tmp_path.iterdir()
    assert not np.fromfile(folder / "marks", parts_module.MARK)["complete"].any()


def damaged(photos: Path, folder: Path) -> Path:
    mine = shutil.copytree(photos, folder / "photos")
    files = sorted((mine / "train").rglob("*.jpg"))
    files[7].write_bytes(files[7].read_bytes()[:200])
    files[20].write_bytes(b"no image")
    (mine / "val" / "a" / "00.jpg").write_bytes(b"")
    return mine


def test_broken_images_have_no_row_and_are_listed(run, photos, tmp_path, command):
    mine = damaged(photos, tmp_path)
    keys = [str(mine), *KEYS, "data.max_bad=0.1"]
    done = command("embed", str(run), *keys, "-o", "f.npz", "--neighbors", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Wrote f.npz: 49 images, 16 features each\n")
    assert "3 broken images have no row; 'f.npz.broken.txt' lists them" in done.stderr
    listed = (tmp_path / "f.npz.broken.txt").read_text().splitlines()
    assert [line.partition("\t")[2].split(" (")[0] for line in listed] == [
        "truncated",
        "not an image, or of a format that Pillow cannot read",
        "the file is empty",
    ]
    assert all(f"left out: {line.partition(chr(9))[0]}" in done.stderr for line in listed)
    table = read_table(tmp_path / "f.npz")
    assert not {line.partition("\t")[0] for line in listed} & set(table.paths)
    ours = selfsight.load_encoder(run).embed(table.paths)  # each row is of its own image
    torch.testing.assert_close(torch.from_numpy(table.features), ours, rtol=1e-4, atol=1e-5)
    assert (table.description["rows"], table.description["broken"]) == (49, 3)
    whole = [str(photos), *KEYS, "data.max_bad=0.1"]
    assert command("embed", str(run), *whole, "-o", "f.npz", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "f.npz.broken.txt").exists()  # it was of the table before


def test_too_many_broken_images_are_refused(run, photos, tmp_path, command):
    mine = damaged(photos, tmp_path)
    done = command("embed", str(run), str(mine), *KEYS, "-o", "f.npz", cwd=tmp_path)
    assert done.returncode == 2
    assert "data.max_bad=0.001: 1 of 40 images cannot be used" in done.stderr
    assert not (tmp_path / "f.npz").exists()


def test_two_ranks_leave_out_what_one_does(run, photos, tmp_path):
    mine = damaged(photos, tmp_path)
    keys = ["embed", str(run), str(mine), *KEYS, "data.max_bad=0.1"]
    done = two_ranks(*keys, "-o", "two.npz", cwd=tmp_path)
    assert [process.returncode for process in done] == [0, 0], done
    embed(run, tmp_path / "one.npz", [f"data.path={mine}", *KEYS, "data.max_bad=0.1"])
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()


# Beyond the features ------------------------------------------------------------------------------


def test_neighbours_are_those_of_scikit_learn(run):
    x = expected(run).numpy()
    found = nearest(x, 5)
    oracle = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(x)
    distances, ids = oracle.kneighbors(x)
    np.testing.assert_allclose(found.distances, distances[:, 1:], atol=1e-5)
    assert (found.ids == ids[:, 1:]).mean() > 0.99  # but for equal distances
    assert not (found.ids == np.arange(len(x))[:, None]).any()


def test_of_equal_rows_none_is_its_own_neighbour():
    found = nearest(np.ones((50, 3), np.float32), 4)
    assert not (found.ids == np.arange(50)[:, None]).any()
    assert (np.sort(found.ids)[:, 1:] > np.sort(found.ids)[:, :-1]).all()
    np.testing.assert_allclose(found.distances, 0, atol=1e-6)


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_rows_of_any_length_have_their_neighbours(size):
    x = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    usual, odd = nearest(x, 5), nearest(x * np.float32(size), 5)
    np.testing.assert_array_equal(odd.ids, usual.ids)
    np.testing.assert_allclose(odd.distances, usual.distances, atol=1e-6)
    zeros = nearest(np.zeros((4, 2), np.float32), 3)
    np.testing.assert_array_equal(zeros.distances, 1)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_projection_keeps_groups_together_and_is_the_same_again(method):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), 30)
    x = (np.eye(3, 20)[groups] + 0.05 * rng.standard_normal((90, 20))).astype(np.float32)
    plane = project(x, method, 0)
    assert (plane.shape, plane.dtype) == ((90, 2), np.float32)
    np.testing.assert_array_equal(plane, project(x, method, 0))
    _, ids = NearestNeighbors(n_neighbors=2).fit(plane).kneighbors(plane)
    assert (groups[ids[:, 1]] == groups).all()


@pytest.mark.parametrize("shape", [(3, 1), (3, 2), (4, 60), (70, 1)])
@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_few_rows_and_few_features_have_places_too(method, shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert np.isfinite(project(x, method, 0)).all()


def test_layers_are_means_of_their_maps(run, tmp_path):
    embed(run, tmp_path / "f.npz", KEYS, Options(split="test", layers=["layer2", -1]))
    table = read_table(tmp_path / "f.npz")
    encoder, source = selfsight.load_encoder(run), open_source(DataConfig(), "test")
    images = [source.read(n) for n in range(360)]
    maps = encoder.dense(images, ["layer2", -1])
    means = torch.cat([each.mean((2, 3)) for each in maps], 1)
    torch.testing.assert_close(torch.from_numpy(table.features), means, rtol=1e-4, atol=1e-5)
    assert table.description["layers"] == ["layer2", "layer4"]
    assert table.description["num_features"] == 8 + 16


# Mistakes -----------------------------------------------------------------------------------------

MISTAKES = {
    "ending": (["-o", "f.txt"], "'f.txt': the ending of a table of features must be .parquet"),
    "folder": (["-o", "no/f.npz"], "'no/f.npz': its folder does not exist; make it"),
    "k": (["--neighbors", "360", "--split", "test"], "--neighbors 360: there are 360 images, so"),
    "none": (["--neighbors", "0"], "--neighbors 0: there are 1,797 images"),
    "layers": (["--layers", "3,99"], "layers=99: the encoder has the layers 0 to 4"),
    "no layers": (["--layers", ""], "layers=: the encoder has the layers 0 to 4"),
    "projection": (["--projection", "umap"], "--projection umap: must be tsne or pca"),
    "split": (["--split", "val"], "--split val: must be train or test"),
    "path": (["nowhere"], "nowhere: no such file or folder"),
    "no images": (["."], "no images"),
    "paths": (["a", "b"], "'a' and 'b': give one path"),
    "key": (["dta.limit=3"], "Unknown key 'dta'"),
    "another's key": (["allow_overlap=true"], "Unknown key 'allow_overlap'"),
    "channels": (["data.channels=12"], "3 numbers for data.channels=12"),
    "description": (["backbone.patch_size=3"], "the file describes its encoder itself"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(run, tmp_path, command, name):
    keys, message = MISTAKES[name]
    done = command("embed", str(run), *KEYS, *keys, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".parts"]


def test_a_file_of_the_users_is_not_replaced(run, tmp_path, command):
    (tmp_path / "f.csv").write_text("path,label\na,b\n")
    done = command("embed", str(run), *KEYS, "-o", "f.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert "'f.csv': exists and is no table that this command wrote" in done.stderr
    assert (tmp_path / "f.csv").read_text() == "path,label\na,b\n"


@pytest.mark.parametrize("table", [None, "path,label\na,b\n"])
def test_a_file_where_the_description_goes_is_not_replaced(run, tmp_path, command, table):
    (tmp_path / "f.csv.json").write_text('{"mine": 1}')
    if table is not None:
        (tmp_path / "f.csv").write_text(table)
    done = command("embed", str(run), *KEYS, "-o", "f.csv", cwd=tmp_path)
    assert done.returncode == 2
    assert "exists and is no table that this command wrote" in done.stderr
    assert (tmp_path / "f.csv.json").read_text() == '{"mine": 1}'


def test_a_file_that_appeared_during_the_work_is_not_replaced(run, tmp_path, monkeypatch):
    output, read = tmp_path / "f.npz", embed_module.read_missing

    def slow(*arguments) -> None:
        read(*arguments)
        output.write_text("mine")

    monkeypatch.setattr(embed_module, "read_missing", slow)
    with pytest.raises(UserError, match="exists and is no table"):
        embed(run, output, KEYS, Options(split="test"), quiet=True)
    assert output.read_text() == "mine"
    output.unlink()
    monkeypatch.setattr(embed_module, "read_missing", read)
    monkeypatch.setattr(reading, "_read", None)  # nothing is read again
    assert embed(run, output, KEYS, Options(split="test"), quiet=True).rows == 360


def test_a_name_that_parquet_cannot_hold_is_refused_before_the_work(run, tmp_path, command):
    for name in (b"a.png", b"caf\xe9.png"):
        Image.new("RGB", (20, 20)).save(tmp_path / os.fsdecode(name))
    done = command("embed", str(run), ".", *KEYS, "-o", "f.parquet", cwd=tmp_path)
    assert done.returncode == 2
    assert "caf\\xe9.png': Parquet holds UTF-8 text alone" in done.stderr
    assert not list(tmp_path.glob(".f.parquet*"))
    assert command("embed", str(run), ".", *KEYS, "-o", "f.npz", cwd=tmp_path).returncode == 0
    assert all(Path(path).is_file() for path in read_table(tmp_path / "f.npz").paths)


def test_a_checkpoint_of_a_run_is_named(run, tmp_path, command):
    (file,) = (run / "checkpoints").glob("*.pt")
    done = command("embed", str(file), *KEYS, "-o", "f.npz", "--split", "test", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"The encoder is that of step 2 of '{run}'" in done.stderr
    assert read_table(tmp_path / "f.npz").description["step"] == 2
    np.testing.assert_array_equal(read_table(tmp_path / "f.npz").features, expected(run).numpy())


def test_too_many_rows_for_tsne_are_refused_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(nearest_module, "MOST", 1000)
    with pytest.raises(UserError, match=r"takes at most 1,000 images, and there are 1,797; choose"):
        embed(run, tmp_path / "f.npz", KEYS, Options(projection="tsne"))
    assert written(tmp_path) == []


def test_images_of_other_channels_are_refused(tmp_path, command):
    x = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 4), np.uint8)
    np.save(tmp_path / "bands.npy", x)
    keys = (
        "max_steps=1",
        "data.channels=4",
        "data.mean=auto",
        "data.std=auto",
        f"data.path={tmp_path / 'bands.npy'}",
    )
    config = config_of(tmp_path / "r", *keys, "views=multispectral-small", method="simclr")
    run = selfsight.pretrain(config, True).path
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "b.png")
    (tmp_path / "list.txt").write_text("a.png\nb.png\n")
    done = command("embed", str(run), "list.txt", *KEYS, "-o", "f.npz", cwd=tmp_path)
    assert done.returncode == 2
    assert "3 channels" in done.stderr
    assert embed(run, tmp_path / "f.npz", KEYS).rows == 64


def test_a_run_that_is_not_finished_and_one_that_does_not_exist(tmp_path, command):
    (tmp_path / "empty").mkdir()
    for where, message in (("empty", "the run is not finished"), ("gone", "no such run folder")):
        done = command("embed", where, cwd=tmp_path)
        assert (done.returncode, message in done.stderr) == (2, True)


def test_two_commands_do_not_write_one_table(run, tmp_path, monkeypatch):
    from selfsight.locks import locked

    with monkeypatch.context() as patch:
        cut_after(patch, 0)
        with pytest.raises(Cut):
            embed(run, tmp_path / "f.npz", KEYS)
    (folder,) = tmp_path.glob(".f.npz.*.parts")
    with locked(folder), pytest.raises(UserError, match="another process is writing"):
        embed(run, tmp_path / "f.npz", KEYS)


def test_the_description_is_json_that_another_program_reads(run, tmp_path):
    embed(run, tmp_path / "f.csv", KEYS, Options(split="test"))
    about = json.loads((tmp_path / "f.csv.json").read_text())
    assert Path(about["encoder"]) == Path(run).absolute()
    assert about["backbone"]["name"] == "resnet18"
