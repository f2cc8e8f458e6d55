"""The package in examples/plugin, built and installed apart from this one: its method, encoder and
images in a run of two processes that is killed, continued and evaluated."""

import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfsight.encoders.artifact import read_network
from selfsight.evaluate.protocols import read_results
from selfsight.testing import check_method
from tests.conftest import ROOT, selfsight
from tests.processes import environment, start_ranks, two_ranks
from tests.test_dist import BUILD

KEYS = [
    *("method.name=align_uniform", "backbone.name=patch_net", "data.source=tiles"),
    *("views=moco_v2-small", "batch_size=64", "epochs=3", "method.hidden_dim=32"),
    *("log_every=1", "checkpoint.every_steps=1", "device=cpu", "precision=fp32"),
]
COMMAND = ["pretrain", "digits/simclr", *KEYS]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of packages, in which the example is installed."""
    source, folder = tmp_path_factory.mktemp("plugin") / "copy", tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "examples/plugin", source, ignore=shutil.ignore_patterns("__pycache__"))
    _run(source, sys.executable, "-c", BUILD.format(str(source / "dist")))
    (wheel,) = (source / "dist").glob("*.whl")
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    _run(source, sys.executable, *pip, "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def _run(cwd: Path, *command: str | Path, **more: str) -> str:
    environ = {**environment(), **more}
    done = subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed_and_keeps_the_contract(site, tmp_path, monkeypatch, command):
    monkeypatch.syspath_prepend(str(site))
    assert "2005.10242" in command("methods", cwd=tmp_path).stdout
    method = importlib.import_module("selfsight_example.method").AlignUniform
    encoder = importlib.import_module("selfsight_example.encoder").PatchNet
    for backbone in (None, encoder):
        check_method(method, method.Config(hidden_dim=16, output_dim=8), backbone)


def test_without_the_package_its_names_are_unknown(tmp_path):
    done = selfsight(*COMMAND, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "method.name=align_uniform: no such method" in done.stderr


def encoder_of(run: Path) -> dict[str, bytes]:
    tensors = read_network(run / "encoder.safetensors").tensors
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


def test_two_processes_killed_and_continued_and_evaluated(site, tmp_path):
    where = {"PYTHONPATH": str(site)}
    ranks = start_ranks([[*COMMAND, "run=two"]] * 2, [tmp_path] * 2, **where)
    while not list(tmp_path.glob("two/checkpoints/step-*.pt")):
        assert all(rank.poll() is None for rank in ranks), [r.wait().stderr for r in ranks]
        time.sleep(0.02)
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)
    assert all(rank.wait().returncode != 0 for rank in ranks)
    first, _ = two_ranks(*COMMAND, "run=two", cwd=tmp_path, **where)
    assert first.returncode == 0, first.stderr
    assert "Continuing after step" in first.stderr
    whole, _ = two_ranks(*COMMAND, "run=whole", cwd=tmp_path, **where)
    assert whole.returncode == 0, whole.stderr
    assert encoder_of(tmp_path / "two") == encoder_of(tmp_path / "whole")
    done = selfsight("knn", "two", cwd=tmp_path, **where)
    assert "untrained" in done.stdout
    records = {record["evaluated"]: record for record in read_results(tmp_path / "two")}
    assert records["encoder"]["data"]["test"] == 2 * 13 * 4
    assert (
        json.loads((tmp_path / "two/encoder.json").read_text())["backbone"]["name"] == "patch_net"
    )
    # without the package nobody can build the encoder
    done = selfsight("knn", "two", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("selfsight: data.source=tiles: no such source")
