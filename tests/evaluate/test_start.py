"""The row `start`: what a run started from, and whether it was worth to train on."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import selfsight
from selfsight.evaluate.gain import gain
from selfsight.evaluate.protocols.results import Result, notes
from selfsight.pretraining import job as jobs
from tests.pretraining.test_weights import config_of

# The interval -------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=30, deadline=None)
def test_the_gain_is_the_difference_and_lies_in_its_interval(pairs):
    a, b = torch.tensor(pairs).unbind(1)
    found, turned = gain(a, b, 0), gain(b, a, 0)
    assert found["mean"] == pytest.approx((a.float().mean() - b.float().mean()).item(), abs=1e-6)
    assert found["low"] <= found["mean"] + 1e-9
    assert found["high"] >= found["mean"] - 1e-9
    assert turned["mean"] == -found["mean"]
    if bool((a == b).all()):
        assert (found["low"], found["high"]) == (0, 0)


def test_the_interval_is_that_of_images_drawn_again_one_by_one():
    generator = np.random.default_rng(0)
    a, b = generator.random(300) < 0.8, generator.random(300) < 0.7
    draws = generator.integers(0, 300, (4000, 300))
    differences = a[draws].mean(1) - b[draws].mean(1)
    found = gain(torch.from_numpy(a), torch.from_numpy(b), 0)
    low, high = np.quantile(differences, [0.025, 0.975])
    assert (found["low"], found["high"]) == (
        pytest.approx(low, abs=6e-3),
        pytest.approx(high, abs=6e-3),
    )


@pytest.mark.parametrize(
    ("interval", "says"),
    [
        ((0.01, 0.05), "better than what it started from ("),
        ((-0.05, -0.01), "worse than what it started from: use that one ("),
        ((-0.01, 0.05), "neither better nor worse than what it started from ("),
    ],
)
def test_the_result_is_said_in_words(interval, says):
    low, high = interval
    about = {"protocol": "knn", "kind": "knn", "version": 2, "settings": {}, "seed": 0, "cost": {}}
    about |= {"weights_sha256": None, "data": {"test": 360, "train": 100}}
    found = {"mean": (low + high) / 2, "low": low, "high": high, "draws": 10_000}
    records = [
        Result(evaluated="encoder", metrics={"k20": 0.93}, gain=found, **about),
        Result(evaluated="start", metrics={"k20": 0.91}, **about),
    ]
    (line,) = notes(records)
    assert says in line
    assert "93.0% against 91.0%" in line
    assert f"{100 * low:+.1f} to {100 * high:+.1f} points, over 10,000 draws of the 360" in line


# Whole evaluations --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run at random, and one from its weights."""
    folder = tmp_path_factory.mktemp("runs")
    jobs.pretrain(config_of(folder / "first", "epochs=3", "seed=7"), quiet=True)
    more = [f"weights={folder / 'first'}", "max_steps=3", "optimizer.lr=0.02"]
    jobs.pretrain(config_of(folder / "second", *more), quiet=True)
    return folder


KEYS = {
    "knn": [],
    "linear": ["shots=2"],
    "linear_augmented": ["max_steps=2", "shots=2", "method.lr_factors=[1]"],
    "finetune": ["max_steps=2", "shots=2"],
}


@pytest.mark.parametrize("protocol", KEYS)
def test_start_scores_what_its_own_run_scores(runs, tmp_path, protocol):
    measure = getattr(selfsight, protocol)
    more = {"quiet": True} if protocol in ("linear_augmented", "finetune") else {}
    keys = [*KEYS[protocol], "device=cpu", "untrained=false", "seed=0"]
    keys += ["pixels=false"] if protocol in ("knn", "linear") else []
    found = {r.evaluated: r for r in measure(runs / "second", keys, str(tmp_path / "a"), **more)}
    assert list(found) == ["encoder", "start"]
    (first,) = measure(runs / "first", keys, str(tmp_path / "b"), **more)
    assert found["start"].metrics == first.metrics
    assert found["start"].weights_sha256 == first.weights_sha256
    main = "k20" if protocol == "knn" else "top1"
    difference = found["encoder"].metrics[main] - first.metrics[main]
    assert found["encoder"].gain["mean"] == pytest.approx(difference, abs=1e-6)
    assert found["start"].gain == {}
    # once more, from what is stored
    again = {r.evaluated: r for r in measure(runs / "second", keys, str(tmp_path / "a"), **more)}
    assert again["encoder"].gain == found["encoder"].gain
    (alone,) = measure(runs / "second", [*keys, "start=false"], str(tmp_path / "a"), **more)
    assert alone.evaluated == "encoder"
    assert alone.gain == {}


def test_the_table_has_the_row_and_the_words(runs, command):
    done = command("knn", "second", "device=cpu", cwd=runs)
    rows = [line.split("│")[1].strip() for line in done.stdout.splitlines() if "│" in line]
    assert rows == ["encoder", "start", "untrained", "pixels"]
    assert "than what it started from" in " ".join(done.stdout.split())
    plain = command("knn", "first", "device=cpu", cwd=runs)
    assert "start" not in plain.stdout.replace("starts", "")


def test_start_is_kept_when_the_weights_are_gone(runs, tmp_path):
    shutil.copytree(runs / "second", tmp_path / "second")
    stored = load_file(tmp_path / "second" / "start.safetensors")
    given = load_file(runs / "first" / "encoder.safetensors")
    assert all(torch.equal(stored[key], value) for key, value in given.items())
    about = json.loads((tmp_path / "second" / "start.json").read_text())
    assert about["pretrained_on"]["images"] == 0
    keys = ["device=cpu", "untrained=false", "pixels=false"]
    found = selfsight.knn(tmp_path / "second", keys)
    assert [r.evaluated for r in found] == ["encoder", "start"]


def test_a_new_layer_of_a_head_is_no_part_of_the_start(runs, tmp_path):
    """SimCLR v2's encoder ends in a layer that the weights do not have."""
    more = [f"weights={runs / 'first'}", "max_steps=1"]
    jobs.pretrain(config_of(tmp_path / "v2", *more, method="simclr_v2"), quiet=True)
    keys = ["device=cpu", "untrained=false", "pixels=false"]
    _, start = selfsight.knn(tmp_path / "v2", keys)
    (first,) = selfsight.knn(runs / "first", keys, str(tmp_path / "b"))
    assert start.metrics == first.metrics
