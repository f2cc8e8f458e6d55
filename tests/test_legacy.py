"""What version 0.1.0 wrote, when the package was called tacit, is read and goes on.

How the files were made: tests/legacy/README.md.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from selfsight import load_encoder
from selfsight.data.config import DataConfig
from selfsight.data.pack.read import Pack
from selfsight.data.sources.download import downloads
from selfsight.data.sources.open import open_source
from selfsight.evaluate.protocols.results import read_results
from selfsight.logging.log import read_metrics
from tests.conftest import ROOT

LEGACY = ROOT / "tests" / "legacy"
TINY_VIT = (
    "backbone={name: vit_tiny_patch16_224, small_images: false, stem_stride: 1, patch_size: 4, "
    "options: {embed_dim: 8, depth: 1, num_heads: 2, class_token: false, global_pool: avg}}"
)
KEYS = [
    "data.limit=100",
    "batch_size=50",
    "views=digits",
    "evaluate.every_epochs=0",
    "method.hidden_dim=16",
    "method.output_dim=8",
    "device=cpu",
    "log_every=1",
    TINY_VIT,
]


@pytest.fixture
def legacy(tmp_path) -> Path:
    """A copy, for commands write beside what they read."""
    return Path(shutil.copytree(LEGACY, tmp_path / "legacy"))


def content(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def test_the_files_are_of_before_the_new_name():
    with safe_open(LEGACY / "runs/finished/encoder.safetensors", framework="pt") as file:
        assert file.metadata().keys() == {"tacit"}
    assert json.loads((LEGACY / "pack/train/pack.json").read_text())["format"] == "tacit-pack"
    assert {record["tacit"] for record in read_results(LEGACY / "runs/finished")} == {"0.1.0"}
    assert "tacit 0.1.0" in (LEGACY / "runs/stopped/config.yaml").read_text()


def test_an_encoder(legacy):
    encoder = load_encoder(legacy / "runs/finished")
    assert encoder.num_features == 8
    assert encoder.description["tacit"] == "0.1.0"
    kept = [np.load(p).shape for p in (legacy / "runs/finished/features").glob("*.npy")]
    assert (360, encoder.num_features) in kept


@pytest.mark.parametrize(
    ("protocol", "metric"), [("knn", "k20"), ("knn", "k200"), ("linear", "top1")]
)
def test_an_evaluation_gives_the_same_numbers(legacy, command, protocol, metric):
    run = legacy / "runs/finished"
    before = {
        record["evaluated"]: record["metrics"][metric]
        for record in read_results(run)
        if record["protocol"] == protocol
    }
    done = command(protocol, "runs/finished", "device=cpu", cwd=legacy)
    assert done.returncode == 0, done.stderr
    records = [record for record in read_results(run) if record["protocol"] == protocol]
    now = [r for r in records if "selfsight" in r]
    assert {r["evaluated"] for r in now} == {"encoder", "untrained", "pixels"}
    for record in now:  # an image or two may be classified in another way on another machine
        assert record["metrics"][metric] == pytest.approx(before[record["evaluated"]], abs=0.01)


def test_results_of_before_are_kept_and_compared(legacy, command):
    run = legacy / "runs/finished"
    before = [r for r in read_results(run) if r["protocol"] == "linear"]
    assert command("knn", "runs/finished", "device=cpu", cwd=legacy).returncode == 0
    assert [r for r in read_results(run) if r["protocol"] == "linear"] == before
    (cell,) = (legacy / "grid/cells").glob("digits-simclr-*")
    done = command("compare", "runs/finished", str(cell / "run"), cwd=legacy)
    assert done.returncode == 0, done.stderr
    assert "24.2" in done.stdout  # the kNN accuracy of both


def test_a_finished_run_is_finished(legacy, command):
    run, words = legacy / "runs/finished", [*KEYS, "epochs=4", "--run", "runs/finished"]
    before, weights = content(run), load_encoder(run).state_dict()
    done = command("pretrain", "digits/simclr", *words, cwd=legacy)
    assert done.returncode == 0, done.stderr
    after = content(run)
    written = {name for name in before if after[name] != before[name]}
    assert written <= {"encoder.safetensors", "encoder.json"}, "the description names the package"
    assert after.keys() == before.keys() | {"data.json"}
    for name, tensor in load_encoder(run).state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_a_stopped_run_goes_on(legacy, command):
    run, words = legacy / "runs/stopped", [*KEYS, "epochs=20", "--run", "runs/stopped"]
    before = read_metrics(run / "metrics.jsonl")
    assert before[-1]["step"] == 4
    done = command("pretrain", "digits/simclr", *words, cwd=legacy)
    assert done.returncode == 0, done.stderr
    after = read_metrics(run / "metrics.jsonl")
    assert after[:4] == before
    assert [record["step"] for record in after] == list(range(1, 41))
    assert load_encoder(run).num_features == 8


def test_a_pack(legacy, command):
    pack, digits = Pack(legacy / "pack/train"), open_source(DataConfig(source="digits"), "train")
    assert len(pack) == len(digits) == 1437
    assert pack.labels.tolist() == digits.labels.tolist()
    assert command("check", "pack", cwd=legacy).returncode == 0
    before = content(legacy / "pack")
    words = ["data.source=digits", "-o", "pack", "--raw", "--size", "2"]
    done = command("pack", *words, cwd=legacy)
    assert done.returncode == 0, done.stderr
    assert "pack/train: 1,437 images, packed before" in done.stdout
    assert content(legacy / "pack") == before


def test_another_pack_is_refused_where_one_of_before_lies(legacy, command):
    words = ["data.source=digits", "-o", "pack", "--raw", "--size", "3"]
    done = command("pack", *words, cwd=legacy)
    assert done.returncode == 2
    assert "size: 2 -> 3" in done.stderr
    assert "format" not in done.stderr


def test_a_grid(legacy, command):
    before = content(legacy / "grid/cells")
    done = command("bench", "grid.yaml", "-o", "grid", "--device", "cpu", cwd=legacy)
    assert done.returncode == 0, done.stderr
    assert "2 cells, 2 of them done" in done.stderr
    assert content(legacy / "grid/cells") == before
    assert "simclr" in done.stdout
    assert "24.2" in done.stdout  # its kNN accuracy


def test_downloads_of_before_are_used_unless_there_are_new_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert downloads() == tmp_path / "selfsight"
    (tmp_path / "tacit").mkdir()
    assert downloads() == tmp_path / "tacit"
    (tmp_path / "selfsight").mkdir()
    assert downloads() == tmp_path / "selfsight"
