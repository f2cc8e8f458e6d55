"""Evaluations of data that changed since the last one measure the data as they are."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import selfsight
from selfsight.data.config import DataConfig
from selfsight.data.sources.open import open_source
from selfsight.errors import UserError
from selfsight.evaluate.protocols import trained_classifier
from selfsight.evaluate.protocols.results import read_results
from selfsight.evaluate.protocols.retest import retest
from tests.train.test_train import config_of

KEYS = ["untrained=false", "epochs=6", "views=digits", "views.0.count=1", "method.lr_factors=[1.0]"]
MEASURES = {
    "knn": lambda run: selfsight.knn(run, ["untrained=false", "pixels=false"]),
    "linear-augmented": lambda run: selfsight.linear_augmented(run, KEYS, quiet=True),
    "finetune": lambda run: selfsight.finetune(run, KEYS[:-1], quiet=True),
}


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """A run on an .npz with digits of four classes, as keys of one dictionary."""
    folder = tmp_path_factory.mktemp("runs")
    content = {}
    for split, count in (("train", 120), ("test", 60)):
        source = open_source(DataConfig(), split)
        rows = np.flatnonzero(source.labels < 4)[:count]
        content[f"{split}_x"] = np.stack([source.read(int(i)) for i in rows])
        content[f"{split}_y"] = source.labels[rows]
    np.savez(folder / "in.npz", **content)
    keys = [f"data.path={folder / 'in.npz'}", "batch_size=40", "max_steps=6"]
    return selfsight.pretrain(config_of(folder / "a", *keys, method="simclr"), True).path, content


@pytest.fixture
def run(trained_run, tmp_path):
    """A copy of the run, and of its data, which it may have changed before."""
    np.savez(trained_run[0].parent / "in.npz", **trained_run[1])
    return shutil.copytree(trained_run[0], tmp_path / "run"), dict(trained_run[1])


def exchanged(labels):
    return np.array([1, 0, 3, 2])[labels]


CHANGES = {
    "test labels": lambda c: {"test_y": exchanged(c["test_y"])},
    "train labels": lambda c: {"train_y": exchanged(c["train_y"])},
    "test images": lambda c: {"test_x": 255 - c["test_x"]},
    "train images": lambda c: {"train_x": 255 - c["train_x"]},
    "fewer": lambda c: {"train_x": c["train_x"][:80], "train_y": c["train_y"][:80]},
    "a class less in the test split": lambda c: {
        key: c[key][c["test_y"] < 3] for key in ("test_x", "test_y")
    },
}


@pytest.mark.parametrize("protocol", MEASURES)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_are_measured_anew(run, tmp_path, trained_run, protocol, change):
    (folder, content), measure = run, MEASURES[protocol]
    first = measure(folder)[0].metrics
    changed = {**content, **CHANGES[change](content)}
    np.savez(trained_run[0].parent / "in.npz", **changed)
    fresh = measure(shutil.copytree(trained_run[0], tmp_path / "fresh"))[0].metrics
    again = measure(folder)[0].metrics
    assert again == fresh
    if change == "test labels":
        assert again != first


def test_the_data_of_before_have_their_result_still(run, trained_run, monkeypatch):
    folder, content = run
    path = trained_run[0].parent / "in.npz"
    first = MEASURES["finetune"](folder)[0].metrics
    np.savez(path, **{**content, "test_y": exchanged(content["test_y"])})
    MEASURES["finetune"](folder)
    np.savez(path, **content)
    monkeypatch.setattr(trained_classifier, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert MEASURES["finetune"](folder)[0].metrics == first
    (record,) = read_results(folder)
    assert record["metrics"] == first


def test_a_classifier_of_before_that_did_not_record_its_data_is_trained_again(run, capsys):
    folder, _ = run
    MEASURES["finetune"](folder)
    (home,) = (folder / "evaluations").iterdir()
    config = selfsight.evaluate.protocols.config
    stored = json.loads((home / "encoder/result.json").read_text())
    tree = config.layers.read_yaml(home / "encoder/config.yaml")
    fingerprint = config.layers.validate(config.TrainedConfig, tree).fingerprint()
    old = home.with_name(f"finetune-{fingerprint}")
    home.rename(old)
    stored["metrics"]["top1"] = 2.0
    (old / "encoder/result.json").write_text(json.dumps(stored))
    assert MEASURES["finetune"](folder)[0].metrics["top1"] <= 1
    assert "did not record the images and labels" in capsys.readouterr().err
    MEASURES["finetune"](folder)
    assert "did not record" not in capsys.readouterr().err


def test_a_classifier_is_tested_on_its_own_classes(run, trained_run, tmp_path):
    folder, content = run
    trained = MEASURES["finetune"](folder)[0].metrics
    (home,) = (folder / "evaluations").glob("*/encoder")
    tested = retest(folder, home)[0].metrics
    assert {k: trained[k] for k in tested} == tested
    half = content["test_y"] < 3  # a class less is no other class
    np.savez(
        trained_run[0].parent / "in.npz",
        **{**content, "test_x": content["test_x"][half], "test_y": content["test_y"][half]},
    )
    assert 0 <= retest(folder, home)[0].metrics["top1"] <= 1
    more = {**content, "train_y": content["train_y"] + 1, "test_y": content["test_y"] + 1}
    np.savez(trained_run[0].parent / "in.npz", **more)
    with pytest.raises(UserError, match=r"--classifier .*other classes \(0 -> 1\)"):
        retest(folder, home)
    whole = (home / "data.json").read_text()
    for damage in ("{", "[]", "{}", whole.replace('"0"', '"1"')):
        assert damage != whole
        (home / "data.json").write_text(damage)
        with pytest.raises(UserError, match=r"data\.json' is damaged"):
            retest(folder, home)
    (home / "data.json").unlink()  # as in 0.1.0, which recorded their number alone
    fifth = np.where(np.arange(len(more["train_y"])) == 0, 9, more["train_y"])
    np.savez(trained_run[0].parent / "in.npz", **{**more, "train_y": fifth})
    with pytest.raises(UserError, match=r"--classifier .*other classes \(4 classes -> 5\)"):
        retest(folder, home)


def test_a_classifier_is_not_tested_on_classes_of_other_names(run, tmp_path):
    folder, content = run
    for split in ("train", "test"):
        for i, label in enumerate(content[f"{split}_y"]):
            place = tmp_path / "in" / split / "abcd"[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content[f"{split}_x"][i]).save(place / f"{i}.png")
    keys = [f"data.path={tmp_path / 'in'}", "allow_overlap=true"]
    selfsight.finetune(folder, [*KEYS[:-1], *keys], quiet=True)
    (home,) = (folder / "evaluations").glob("*/encoder")
    for split in ("train", "test"):
        (tmp_path / "in" / split / "b").rename(tmp_path / "in" / split / "x")
    with pytest.raises(UserError, match=r"other classes \(b -> c\)"):
        retest(folder, home, keys)


def test_files_of_one_size_and_time_that_were_exchanged(run, tmp_path):
    """As a tar or zip unpacks them, whose times are whole seconds."""
    folder, _ = run
    random = np.random.default_rng(0)
    for n in range(80):
        path = tmp_path / "in" / ("train" if n % 4 else "test") / "ab"[n // 40] / f"{n % 40}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 90, (8, 8, 3), np.uint8) + np.uint8(160 * (n // 40))
        Image.fromarray(pixels).save(path)
        os.utime(path, (1e9, 1e9))

    def measured() -> float:
        keys = [f"data.path={tmp_path / 'in'}", "untrained=false", "pixels=false"]
        return selfsight.knn(folder, keys)[0].metrics["k20"]

    before, test = measured(), tmp_path / "in" / "test"
    assert before > 0.9
    (test / "a").rename(test / "x")
    (test / "b").rename(test / "a")
    (test / "x").rename(test / "b")
    assert measured() == pytest.approx(1 - before)
