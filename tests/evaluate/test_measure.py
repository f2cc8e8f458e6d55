"""Whole evaluations, and attempts to make them lie."""

import errno
import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import selfsight
from selfsight.data.config import DataConfig
from selfsight.data.images import Images
from selfsight.data.sources.folder import Folder
from selfsight.data.sources.open import open_source
from selfsight.encoders.artifact import Network, weights_hash
from selfsight.errors import UserError
from selfsight.evaluate.classifiers import LinearHeads
from selfsight.evaluate.features import extract
from selfsight.evaluate.linear import linear_probe
from selfsight.evaluate.protocols import config as measure_config
from selfsight.evaluate.protocols import frozen_features, notes
from selfsight.evaluate.protocols import trained_classifier as trained
from selfsight.evaluate.protocols.results import VERSIONS, Result, noise, read_results, store
from selfsight.methods import METHODS
from selfsight.pretraining.config import compose, read_run_config
from selfsight.pretraining.job import pretrain
from selfsight.train import session
from selfsight.train.checkpoint import Checkpoints
from tests.conftest import TINY, heads
from tests.processes import two_ranks
from tests.train.test_train import config_of

QUICK = ["epochs=2", "views=digits", "views.0.count=1"]
EVALUATIONS = {
    "knn": lambda run, keys, **more: selfsight.knn(run, keys, **more),
    # raw pixels, the widest features of all, are measured in test_evaluate.py
    "linear": lambda run, keys, **more: selfsight.linear(run, ["pixels=false", *keys], **more),
    "linear-augmented": lambda run, keys, **more: selfsight.linear_augmented(
        run, [*QUICK, *keys], quiet=True, **more
    ),
    "finetune": lambda run, keys, **more: selfsight.finetune(
        run, [*QUICK, *keys], quiet=True, **more
    ),
}


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    return selfsight.pretrain(config_of(folder, "epochs=2", method="simclr"), True).path


@pytest.fixture
def run(trained_run, tmp_path):
    """A copy that a test may write into."""
    return shutil.copytree(trained_run, tmp_path / "run")


def arrays(path, train: int, test: int, leaked: int = 0) -> str:
    """An .npz with so many of the digits of both splits; leaked: training images among the test."""
    sources = {split: open_source(DataConfig(), split) for split in ("train", "test")}
    rows = {
        "train": [("train", i) for i in range(train)],
        "test": [("test", i) for i in range(test)],
    }
    rows["test"] += [("train", i) for i in range(leaked)]
    content = {}
    for split, which in rows.items():
        content[f"{split}_x"] = np.stack([sources[s].read(i) for s, i in which])
        content[f"{split}_y"] = np.array([sources[s].labels[i] for s, i in which])
    np.savez(path, **content)
    return f"data.path={path}"


# Overlap ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", EVALUATIONS)
def test_training_images_in_the_test_split_are_refused(run, tmp_path, protocol):
    data = arrays(tmp_path / "a.npz", 200, 40, leaked=1)
    with pytest.raises(UserError, match=r"1 test images are among the training images.*test_x 40"):
        EVALUATIONS[protocol](run, [data])
    assert not read_results(run)
    results = EVALUATIONS[protocol](run, [data, "allow_overlap=true"])
    assert results[0].overlap["contents"] == 1
    assert results[0].overlap["allowed"]
    assert any("1 test images are also training images" in note for note in notes(results))


def test_an_encoder_pretrained_on_the_test_images_is_refused(tmp_path):
    """Without labels a folder has no test split: all of its images were trained on."""
    source = open_source(DataConfig(), "train")
    for i in range(120):
        folder = tmp_path / "data" / str(source.labels[i])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.read(i)).save(folder / f"{i}.png")
    keys = [f"data.path={tmp_path / 'data'}", "max_steps=1"]
    blind = config_of(tmp_path / "run", *keys, "data.labels=false", method="simclr")
    run = selfsight.pretrain(blind, True).path
    with pytest.raises(UserError, match="25 test images are among the pretraining images"):
        selfsight.knn(run, ["data.labels=true"])
    (record, *_) = selfsight.knn(run, ["data.labels=true", "allow_overlap=true"])
    assert record.overlap["compared_with"] == ["training", "pretraining"]
    assert record.overlap["contents"] == 25
    honest = selfsight.pretrain(config_of(tmp_path / "b", *keys, method="simclr"), True).path
    assert selfsight.knn(honest)[0].overlap["contents"] == 0


# Frozen, and the test split once ------------------------------------------------------------------


def test_a_frozen_encoder_that_moves_is_refused(run, monkeypatch):
    """As in the replaced system, where it stayed in training mode: batch statistics move."""
    monkeypatch.setattr(LinearHeads, "train", torch.nn.Module.train)
    with pytest.raises(UserError, match="the frozen encoder changed"):
        EVALUATIONS["linear-augmented"](run, [])


def test_heads_leave_the_encoder_alone_and_fine_tuning_does_not(run):
    before = weights_hash(selfsight.load_encoder(run).backbone)
    for protocol, same in (("linear-augmented", True), ("finetune", False)):
        (result, _) = EVALUATIONS[protocol](run, [])
        assert result.weights_sha256 == before
        (folder,) = (run / "evaluations").glob(f"{protocol}-*/encoder")
        _, state = Checkpoints(folder / "checkpoints", 2).load(torch.device("cpu"))
        network = selfsight.load_encoder(run).backbone
        moved = {k.removeprefix("backbone."): v for k, v in state["method"].items()}
        network.load_state_dict({k: moved[k] for k in network.state_dict()})
        assert (weights_hash(network) == before) == same
    assert weights_hash(selfsight.load_encoder(run).backbone) == before


def test_the_test_split_is_used_once_at_the_end(run, monkeypatch):
    """One pass over the test images for each network, after its training, of one head."""
    events = []
    real_accuracy, real_fit = trained.accuracy, trained.fit

    def accuracy(method, images, *arguments):
        events.append((len(images), len(method.heads)))
        return real_accuracy(method, images, *arguments)

    def fit(*arguments, **keys):
        events.append("fit")
        return real_fit(*arguments, **keys)

    monkeypatch.setattr(trained, "accuracy", accuracy)
    monkeypatch.setattr(trained, "fit", fit)
    EVALUATIONS["linear-augmented"](run, ["method.lr_factors=[0.1, 1, 10]"])
    held = 142  # a tenth of each class of 1,437
    once = ["fit", (held, 3), (360, 1)]
    assert events == once * 2  # encoder, untrained


def test_test_labels_reach_nothing_but_the_score(run, tmp_path, monkeypatch):
    """With the test labels shuffled the same rate is chosen and the same weights are learned."""
    keys = ["method.lr_factors=[0.1, 1, 10]", "untrained=false"]
    honest = EVALUATIONS["linear-augmented"](run, keys)[0]
    weights = final_weights(run)
    shutil.rmtree(run / "evaluations")
    real = open_source

    def lying(config, split, cache=None):
        source = real(config, split)
        if split == "test":
            source.labels = (source.labels + 1) % 10
        return source

    monkeypatch.setattr("selfsight.evaluate.protocols.splits.open_source", lying)
    shuffled = EVALUATIONS["linear-augmented"](run, keys)[0]
    assert shuffled.metrics["chosen_lr_factor"] == honest.metrics["chosen_lr_factor"]
    assert shuffled.metrics["validation_top1"] == honest.metrics["validation_top1"]
    assert shuffled.metrics["top1"] != honest.metrics["top1"]
    for a, b in zip(weights, final_weights(run), strict=True):
        assert torch.equal(a, b)


def final_weights(run) -> list[torch.Tensor]:
    (folder,) = (run / "evaluations").glob("*/encoder")
    _, state = Checkpoints(folder / "checkpoints", 2).load(torch.device("cpu"))
    return list(state["method"].values())


def test_the_last_checkpoint_is_tested_as_it_is_on_disk(run, monkeypatch):
    """Not what is in memory, and not one that was better: here the last one says 3 to all."""
    real_fit = trained.fit

    def fit(method, loader, config, folder, *arguments, **keys):
        seconds = real_fit(method, loader, config, folder, *arguments, **keys)
        checkpoints = Checkpoints(folder / "checkpoints", 5)
        step, state = checkpoints.load(torch.device("cpu"))
        assert step == 2 * (1437 // 128)
        state["method"]["heads.0.weight"].zero_()
        state["method"]["heads.0.bias"].copy_(torch.eye(10)[3])
        checkpoints.save(step + 1, state | {"step": step + 1})
        return seconds

    monkeypatch.setattr(trained, "fit", fit)
    (result,) = EVALUATIONS["finetune"](run, ["untrained=false", "checkpoint.keep=5"])
    source = open_source(DataConfig(), "test")
    threes = sum(source.labels[i] == 3 for i in range(len(source)))
    assert result.metrics["top1"] == threes / 360
    assert result.metrics["steps"] == 2 * (1437 // 128) + 1


# Continuing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["linear-augmented", "finetune"])
def test_interrupted_equals_uninterrupted(run, tmp_path, protocol, monkeypatch):
    """SIGTERM after every third step: the same weights and numbers at the end."""
    keys = ["drop_path=0.2"] if protocol == "finetune" else []
    mixing = ["method.mixup=0.8", "method.cutmix=1.0"] if protocol == "finetune" else []
    keys += [*mixing, "batch_size=256"]
    twin = shutil.copytree(run, tmp_path / "twin")
    whole = EVALUATIONS[protocol](run, keys)
    after, stops = session.Session.after, []

    def interrupt(self, done, *arguments):
        if done % 3 == 0 and done < self.steps and (id(self), done) not in stops:
            stops.append((id(self), done))
            os.kill(os.getpid(), signal.SIGTERM)
        return after(self, done, *arguments)

    monkeypatch.setattr(session.Session, "after", interrupt)
    for _ in range(20):
        try:
            pieces = EVALUATIONS[protocol](twin, keys)
            break
        except session.Interrupted:
            continue
    assert len(stops) >= 4
    assert [r.metrics for r in pieces] == [r.metrics for r in whole]
    for a, b in zip(final_weights(run), final_weights(twin), strict=True):
        assert torch.equal(a, b)


def test_what_is_done_is_not_done_again(run, monkeypatch):
    first = EVALUATIONS["finetune"](run, [])
    monkeypatch.setattr(trained, "fit", lambda *a, **k: pytest.fail("trained again"))
    again = EVALUATIONS["finetune"](run, [])
    assert [r.metrics for r in again] == [r.metrics for r in first]
    assert len(read_results(run)) == 2


def test_features_are_read_from_the_disk_the_second_time(run, monkeypatch):
    first = selfsight.knn(run)
    monkeypatch.setattr(
        "selfsight.evaluate.protocols.frozen_features.extract",
        lambda *a, **k: pytest.fail("extracted again"),
    )
    monkeypatch.setattr(Network, "build", lambda self: pytest.fail("built a network"))
    assert [r.metrics for r in selfsight.knn(run)] == [r.metrics for r in first]
    assert selfsight.linear(run, ["pixels=false"])[0].metrics["top1"] > 0.3
    with pytest.raises(pytest.fail.Exception):
        selfsight.knn(run, ["data.mean=[0.1, 0.1, 0.1]"])


def photographs_of_two_classes(folder, count: int) -> None:
    """Noisy JPEG files of 200 x 150 pixels, written an hour ago; one of them is broken."""
    random = np.random.default_rng(0)
    for n in range(count):
        path = folder / ("train" if n % 5 else "test") / f"class{n % 2}" / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 128, (15, 20, 3), np.uint8) + np.uint8(60 * (n % 2))
        Image.fromarray(pixels).resize((200, 150)).save(path)
        if n == 1:
            path.write_bytes(path.read_bytes()[:99])
        os.utime(path, (time.time() - 3600,) * 2)


def test_a_second_evaluation_reads_no_image(run, tmp_path, monkeypatch, capsys):
    """Neither for the features, nor to compare the splits, nor for the row of raw pixels."""
    photographs_of_two_classes(tmp_path / "photos", 60)
    keys = [f"data.path={tmp_path / 'photos'}", "data.max_bad=0.1"]
    first = selfsight.knn(run, keys)
    again = [line for line in capsys.readouterr().err.splitlines() if "broken" in line]
    changed = tmp_path / "photos/test/class0/0.jpg"
    whole = Folder.read

    def read(self, i):
        if self.name(i) != str(tmp_path / "photos/train/class1/1.jpg"):  # the broken one
            pytest.fail(f"read {self.name(i)}")
        return whole(self, i)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", read)
        second = selfsight.knn(run, keys)
        assert [(r.metrics, r.overlap) for r in second] == [(r.metrics, r.overlap) for r in first]
        assert [r.evaluated for r in second] == ["encoder", "untrained", "pixels"]
        assert selfsight.linear(run, keys)[2].metrics["top1"] > 0.5
        assert again[0] in capsys.readouterr().err, "what is broken is said again"
        os.utime(changed, (time.time() - 1800,) * 2)
        with pytest.raises(pytest.fail.Exception, match=re.escape(str(changed.parent))):
            selfsight.knn(run, keys)
    with Image.open(tmp_path / "photos/train/class0/2.jpg") as image:
        image.save(changed, quality=95)
    os.utime(changed, (time.time() - 1800,) * 2)
    assert selfsight.knn(run, keys)[0].overlap["similar"] > first[0].overlap["similar"]


@pytest.mark.parametrize("in_memory", ["false", "true"])
def test_a_failure_of_the_disk_is_not_remembered(run, tmp_path, monkeypatch, in_memory):
    """An image that could not be read is left out of that evaluation, not of the next."""
    photographs_of_two_classes(tmp_path / "photos", 60)
    (tmp_path / "photos/train/class1/1.jpg").unlink()
    keys = [f"data.path={tmp_path / 'photos'}", "data.max_bad=0.1", "untrained=false"]
    keys += ["pixels=false", f"data.in_memory={in_memory}"]
    whole = Folder.read

    def read(self, i):
        if self.name(i).endswith("/7.jpg"):
            raise OSError(errno.EACCES, "Permission denied")
        return whole(self, i)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", read)
        (during,) = selfsight.knn(run, keys)
    (after,) = selfsight.knn(run, keys)
    assert during.data["train"] == 46
    assert after.data["train"] == 47


@pytest.mark.parametrize("memory", [1e9, 1e12])
def test_raw_pixels_that_need_too_much_memory_are_left_out(run, monkeypatch, capsys, memory):
    """Of a linear probe; 40 bytes for each pair of 768 features are 24 MB."""
    monkeypatch.setattr(frozen_features, "physical_memory", lambda: memory / 1e3)
    cls, _ = frozen_features.PROTOCOLS["linear"]
    nothing = frozen_features.Measured({"top1": 0.5}, torch.zeros(360, dtype=torch.bool))
    at_once = (cls, lambda *features: nothing)  # fitting it takes seconds
    monkeypatch.setitem(frozen_features.PROTOCOLS, "linear", at_once)
    rows = [r.evaluated for r in selfsight.linear(run, ["untrained=false"])]
    said = capsys.readouterr().err
    assert rows == (["encoder"] if memory == 1e9 else ["encoder", "pixels"])
    assert ("a linear probe of 768 features needs" in said) == (memory == 1e9)


def test_both_splits_features_have_one_scale(run, monkeypatch):
    """Features on the disk keep the size beside each other that they have in memory, whatever
    scale is found; here every search for one finds another."""
    scales = iter([1.0, 8.0, 64.0])
    monkeypatch.setattr("selfsight.evaluate.features._scale", lambda part: next(scales))
    (result,) = selfsight.linear(run, ["pixels=false", "untrained=false"])
    config = read_run_config(run).data
    encoder = selfsight.load_encoder(run).backbone
    x, y = [], []
    for split in ("train", "test"):
        images = Images(open_source(config, split), config, torch.device("cpu"))
        x.append(extract(encoder, images, 16, config.normalization))
        y.append(images.labels)
    expected = linear_probe(x[0], y[0], x[1], y[1], seed=0)
    assert result.metrics["top1"] == pytest.approx(expected.top1, abs=2.5 / 360)


@pytest.mark.parametrize("command", ["knn", "linear-augmented"])
def test_two_ranks_measure_what_one_does(run, tmp_path, command):
    """359 test images, which two ranks cannot share equally: each is counted once."""
    more = ["epochs=1", "batch_size=64"] if command != "knn" else []
    keys = [arrays(tmp_path / "odd.npz", 300, 359), *more, "untrained=false", "device=cpu"]
    twin = shutil.copytree(run, tmp_path / "twin")
    if command == "knn":
        one = selfsight.knn(run, keys)
    else:
        one = selfsight.linear_augmented(run, keys, quiet=True)
    first, second = two_ranks(command, str(twin), *keys, cwd=tmp_path)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.count("protocol " + command) == 1
    assert not second.stdout, "one rank speaks"
    records = read_results(twin)
    assert [r["evaluated"] for r in records] == [r.evaluated for r in one]
    for a, b in zip(records, one, strict=True):
        assert a["data"]["test"] == 359
        for name, value in b.metrics.items():
            assert a["metrics"][name] == pytest.approx(value, abs=1.5 / 359), name


# Labels, protocols, notes -------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["linear", "linear-augmented", "finetune"])
def test_few_labels(run, protocol):
    (result, *_) = EVALUATIONS[protocol](run, ["fraction=0.1"])
    assert result.settings["labels"] == 142
    (listing,) = run.rglob("subset.txt")
    about = json.loads((listing.parent / "subset.json").read_text())
    assert about["sha256"] == result.settings["subset_sha256"]
    assert about["images"] == len(listing.read_text().splitlines()) == 142
    (again, *_) = EVALUATIONS[protocol](run, [f"images={listing}"])
    assert again.settings["subset_sha256"] == result.settings["subset_sha256"]
    assert again.metrics["top1"] == result.metrics["top1"]
    (more, *_) = EVALUATIONS[protocol](run, ["shots=20"])
    assert more.settings["labels"] == 200
    assert len([r for r in read_results(run) if r["evaluated"] == "encoder"]) == 3


@pytest.mark.parametrize(
    ("protocol", "keys", "message"),
    [
        ("knn", ["fraction=0.1"], "Unknown key 'fraction'"),
        ("knn", ["epochs=3"], "Unknown key 'epochs'"),
        ("linear", ["fraction=0.1", "shots=2"], "both say which labels"),
        ("linear", ["fraction=1.5"], "fraction=1.5"),
        ("linear", ["backbone.name=resnet18"], "leave out backbone"),
        ("finetune", ["views.0.size=24"], "the test images have image_size=16"),
        ("finetune", ["method.layer_decay=2"], "layer_decay=2"),
        ("finetune", ["method.temperature=2"], "Unknown key 'method.temperature'"),
        ("finetune", ["schedule.name=step"], "milestones"),
        ("linear-augmented", ["shots=1", "method.lr_factors=[1, 2]"], "one label per class"),
        ("linear-augmented", ["method.lr_factors=[]"], "lr_factors"),
        ("linear-augmented", ["method.name=finetuned"], "is a protocol for `selfsight finetune`"),
    ],
)
def test_mistakes(run, protocol, keys, message):
    with pytest.raises(UserError, match=message) as error:
        EVALUATIONS[protocol](run, keys)
    assert len(str(error.value).splitlines()) == 1
    assert not (run / "evaluations").exists()


@pytest.mark.parametrize("name", measure_config.protocols())
def test_every_shipped_protocol_trains(run, name):
    kind = "finetune" if name.startswith("finetune") else "linear-augmented"
    measure = {"finetune": selfsight.finetune, "linear-augmented": selfsight.linear_augmented}[kind]
    keys = ["max_steps=2", "batch_size=64", "untrained=false"]
    (result,) = measure(run, keys, protocol=name, quiet=True)
    assert result.protocol == name
    assert result.kind == kind
    assert result.version == VERSIONS[kind]
    changed = result.settings["changed"]
    assert changed == {"max_steps": 2, "batch_size": 64}
    assert 0 <= result.metrics["top1"] <= result.metrics["top5"] <= 1
    assert measure_config.title(name)


def test_a_protocol_of_ones_own(run, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: {name: heads}\nviews: supervised\nepochs: 1\nbatch_size: 64\n")
    (result, _) = selfsight.linear_augmented(run, protocol=str(path), quiet=True)
    assert result.protocol == "mine"
    with pytest.raises(UserError, match="no such protocol or file"):
        selfsight.finetune(run, protocol="finetune-mea")


def result_of(name: str, top1: float, **more) -> Result:
    keys = {"settings": {}, "seed": 0, "cost": {}, "weights_sha256": None}
    data = {"train": 100, "test": 1000}
    return Result("linear", "linear", 1, name, {"top1": top1}, data=data, **keys, **more)


@pytest.mark.parametrize(("encoder", "said"), [(0.5, True), (0.53, True), (0.6, False)])
def test_no_better_than_untrained_is_said(encoder, said):
    results = [result_of("encoder", encoder), result_of("untrained", 0.5)]
    assert any("no better than untrained" in note for note in notes(results)) == said


def test_the_margin_is_that_of_two_binomials():
    generator = np.random.default_rng(0)
    n, p = 400, 0.7
    differences = generator.binomial(n, p, 20000) / n - generator.binomial(n, p, 20000) / n
    assert (np.abs(differences) <= noise(p, p, n)).mean() == pytest.approx(0.95, abs=0.01)


def test_an_encoder_that_learned_nothing_is_named(tmp_path):
    """End to end: an encoder at its first weights, evaluated beside itself."""
    config = config_of(tmp_path / "run", method="simclr")
    run = selfsight.pretraining.job.untrained(config)
    results = selfsight.linear(run, ["pixels=false"])
    assert results[0].metrics == results[1].metrics
    assert any("no better than untrained" in note for note in notes(results))


def test_records_are_kept(tmp_path):
    one = result_of("encoder", 0.5)
    store(tmp_path, [one])
    store(tmp_path, [Result(**{**vars(one), "protocol": "knn"})])
    store(tmp_path, [Result(**{**vars(one), "settings": {"fraction": 0.1}})])
    store(tmp_path, [result_of("encoder", 0.6)])
    records = read_results(tmp_path)
    kept = {(r["protocol"], len(r["settings"]), r["metrics"]["top1"]) for r in records}
    assert kept == {("linear", 0, 0.6), ("knn", 0, 0.5), ("linear", 1, 0.5)}


# Other weights ------------------------------------------------------------------------------------


def test_an_encoder_file_without_its_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.safetensors"
    shutil.copy(run / "encoder.safetensors", file)
    keys = ["data.source=digits"]
    results = selfsight.knn(file, keys)
    expected = selfsight.knn(run)
    assert [r.metrics for r in results] == [r.metrics for r in expected]
    assert len(read_results(tmp_path / "runs" / "mine")) == 3


def test_weights_of_another_library(tmp_path, monkeypatch):
    import timm

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=10)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "theirs.pth")
    keys = ["backbone.name=resnet18", "image_size=32", "device=cpu"]
    results = selfsight.knn("theirs.pth", keys, "results")
    assert results[0].weights_sha256 != results[1].weights_sha256
    assert len(read_results(tmp_path / "results")) == 3
    model.reset_classifier(0)
    assert results[0].weights_sha256 == weights_hash(model)
    with pytest.raises(UserError, match=r"add backbone\.name"):
        selfsight.knn("theirs.pth", [])
    partial = {k: v for k, v in model.state_dict().items() if "layer4.1" not in k}
    save_file(partial, tmp_path / "partial.safetensors")
    with pytest.raises(UserError, match="the file lacks"):
        selfsight.knn("partial.safetensors", keys)


def test_simclr_v2s_kept_layer_is_evaluated_and_fine_tuned(tmp_path):
    config = config_of(tmp_path / "run", "max_steps=2", method="simclr_v2")
    run = selfsight.pretrain(config, True).path
    assert METHODS["simclr_v2"].view_count == (2, 2)
    keys = ["method.layer_decay=0.5", "max_steps=2"]
    (result, untrained) = selfsight.finetune(run, [*QUICK, *keys], quiet=True)
    assert result.weights_sha256 != untrained.weights_sha256


def test_a_transformer_keeps_its_size(tmp_path):
    keys = [*TINY, *heads("mae"), "max_steps=1"]
    config = selfsight.compose("digits/mae", keys, run=str(tmp_path / "run")).config
    run = selfsight.pretrain(config, True).path
    with pytest.raises(UserError, match="image_size=32"):
        selfsight.knn(run, ["image_size=32"])
    (result, _) = selfsight.finetune(run, ["max_steps=1", "method.layer_decay=0.65"], quiet=True)
    assert result.metrics["top5"] > 0


def test_a_configuration_is_no_file_of_weights(tmp_path):
    path = tmp_path / "simclr.ini"
    path.write_text("seed = 1@int")
    with pytest.raises(
        UserError, match="is a configuration, not a file of weights; run it by `selfsight run`"
    ):
        selfsight.knn(path, [])


def test_relative_paths_start_where_the_pretraining_did(tmp_path, monkeypatch):
    """Not where the evaluation is started, which may have other images under the same name."""
    for place, count, value in (("here", 10, 0), ("there", 5, 128)):
        for n in range(count):
            for c in "ab":
                path = tmp_path / place / "photos" / c / f"{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8, 3), value + n + 50 * (c == "b"), np.uint8)).save(
                    path
                )
    monkeypatch.chdir(tmp_path / "here")
    keys = [*TINY, *heads("simclr"), "data.path=photos", "max_steps=1", "batch_size=4"]
    config = compose("digits/simclr", keys, str(tmp_path / "run")).config
    run = pretrain(config, quiet=True)
    known = "untrained=false"
    first = selfsight.knn(run, [known])[0]
    assert first.data["path"] == "photos", "as it was given, where it means the same"
    monkeypatch.chdir(tmp_path / "there")
    second = selfsight.knn(run, [known])[0]
    assert (second.data["train"], second.data["test"]) == (16, 4)
    assert second.data["path"] == str(tmp_path / "here" / "photos")
    assert second.metrics == first.metrics
    other = selfsight.knn(run, [known, "data.path=photos"])[0]
    assert (other.data["train"], other.data["test"]) == (8, 2)
