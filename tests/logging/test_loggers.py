"""Copies of metrics.jsonl in other forms, also of a run that was stopped."""

import csv
import hashlib
import shutil
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from selfsight.errors import UserError
from selfsight.logging.log import read_metrics
from selfsight.logging.trackers import wandb_id
from selfsight.pretraining import job as jobs
from selfsight.pretraining.config import compose
from tests.conftest import TINY, heads, power_cuts

KEYS = [*TINY, *heads("simclr"), "precision=fp32"]


def train(folder, *keys: str) -> None:
    config = compose("digits/simclr", [*KEYS, *keys], str(folder)).config
    jobs.pretrain(config, quiet=True)


def power_cut(monkeypatch, step: int) -> None:
    power_cuts(monkeypatch, step)


def test_tables_and_tensorboard_hold_what_metrics_jsonl_does(tmp_path, monkeypatch):
    keys = ["max_steps=5", "checkpoint={every_epochs: 0, every_steps: 2}"]
    keys += ["log={csv: true, tensorboard: true}"]
    power_cut(monkeypatch, 4)  # step 3 was logged, and comes again
    with pytest.raises(RuntimeError):
        train(tmp_path / "run", *keys)
    monkeypatch.undo()
    train(tmp_path / "run", *keys)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, record in zip(rows, records, strict=True):
        assert {k: float(v) for k, v in row.items() if v} == record
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    names = {name for record in records for name in record} - {"step"}
    assert set(events.Tags()["scalars"]) == names
    for name in names:
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(r["step"], r[name]) for r in records if r.get(name) is not None]
        assert shown == [(step, pytest.approx(value)) for step, value in expected]


def test_wandb_has_one_run_for_a_folder(tmp_path, monkeypatch):
    keys = ["max_steps=4", "checkpoint={every_epochs: 0, every_steps: 2}"]
    keys += ["log.wandb={offline: true, project: mine, name: first, folder: %s}" % (tmp_path / "w")]
    power_cut(monkeypatch, 4)
    with pytest.raises(RuntimeError):
        train(tmp_path / "run", *keys)
    monkeypatch.undo()
    train(tmp_path / "run", *keys)
    files = list((tmp_path / "w" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({file.stem for file in files}) == 1, "both parts are of one run"
    train(tmp_path / "run", *keys)  # there is nothing left to log
    assert list((tmp_path / "w" / "wandb").glob("offline-run-*/run-*.wandb")) == files
    written = b"".join(file.read_bytes() for file in files)
    for text in (b"mine", b"first", b"probe_top1", b"digits"):
        assert text in written


def ids(folder) -> list[str]:
    """Those of the runs below wandb/; a second folder of one second has a number at its end."""
    return sorted(p.name.split("-")[3] for p in (folder / "wandb").glob("offline-run-*-*"))


def test_wandbs_id_belongs_to_the_run_and_not_to_its_path(tmp_path, monkeypatch):
    keys = [
        "max_steps=2",
        "checkpoint.every_steps=1",
        f"log.wandb={{offline: true, folder: {tmp_path}}}",
    ]
    train(tmp_path / "run", *keys)
    (first,) = ids(tmp_path)
    shutil.rmtree(tmp_path / "run")
    power_cut(monkeypatch, 2)
    with pytest.raises(RuntimeError):
        train(tmp_path / "run", *keys)
    monkeypatch.undo()
    (second,) = set(ids(tmp_path)) - {first}
    (tmp_path / "run").rename(tmp_path / "moved")
    train(tmp_path / "moved", *keys)
    assert set(ids(tmp_path)) == {first, second}, "it goes on under its own id, wherever it lies"


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("kind", ["offline-run", "run"])
def test_a_run_of_before_keeps_its_id(tmp_path, checkpoint, kind):
    """0.1.0 made it from the path. A folder without checkpoints is a new run of that path."""
    folder, old = tmp_path / "run", hashlib.sha256(str(tmp_path / "run").encode()).hexdigest()[:16]
    (folder / "checkpoints").mkdir(parents=True)
    (tmp_path / f"wandb/{kind}-20260102_030405-{old}").mkdir(parents=True)
    if checkpoint:
        (folder / "checkpoints/step-00000001.0123456789abcdef.pt").touch()
    found = wandb_id(folder, tmp_path)
    assert (found == old) is checkpoint
    assert wandb_id(folder, tmp_path / "elsewhere") == found


def test_a_damaged_id_is_drawn_anew(tmp_path):
    found = set()
    for content in (b"", b"\xff\xfe", b"../../etc", b"a b"):
        (tmp_path / "wandb_id.txt").write_bytes(content)
        found.add(wandb_id(tmp_path, tmp_path))
    assert len(found) == 4
    assert all(len(name) == 16 for name in found)


def test_wandb_without_a_login_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match=r"^log.wandb: .*; log.wandb.offline=true keeps the run on"):
        train(tmp_path / "run", "max_steps=2", "log.wandb={}")


def test_loggers_are_free_to_change(tmp_path):
    train(tmp_path / "run", "max_steps=2")
    train(tmp_path / "run", "max_steps=2", "log.csv=true")


@pytest.mark.parametrize(
    ("key", "library"), [("tensorboard=true", "tensorboard"), ("wandb={}", "wandb")]
)
def test_a_library_that_is_missing_is_named_before_the_first_step(
    tmp_path, monkeypatch, key, library
):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=rf"needs {library}: pip install 'selfsight\[{library}\]'"):
        train(tmp_path / "run", "max_steps=2", f"log.{key}")
    assert not read_metrics(tmp_path / "run" / "metrics.jsonl")
