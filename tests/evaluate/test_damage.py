"""What evaluations keep, after something happened to it: computed again or set aside and said,
never another number."""

import io
import json
import os
import shutil

import numpy as np
import pytest

import selfsight
from selfsight.errors import UserError
from selfsight.evaluate.protocols import frozen_features
from selfsight.evaluate.protocols.results import read_results
from selfsight.evaluate.protocols.trained_classifier import _is_result
from selfsight.files import Damaged, read_or_set_aside, sealed, write_json
from selfsight.grid.cell import read_outcome, work
from selfsight.logging.log import MetricsFile, read_metrics
from selfsight.report.compare import compare
from selfsight.train.cost import is_cost
from tests.conftest import ROOT

LEGACY = ROOT / "tests/legacy/runs/finished"
BYTES = {
    "nothing": b"",
    "null": b"null",
    "numbers": b"[1, 2]",
    "objects": b"[{}]",
    "no UTF-8": b"\xff\xfe",
    "torn": b'[{"protocol": "knn", "eva',
    "deep": b"[" * 200_000,
}
OTHERS = ["a folder", "a pipe", "a link to nothing"]


def damage(path, what: str) -> None:
    path.unlink(missing_ok=True)
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "a link to nothing":
        path.symlink_to("/nowhere/at/all")
    else:
        path.write_bytes(BYTES[what])


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run with its results, and what they are."""
    run = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(LEGACY, run)
    for name in ("results.json", "features"):
        shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    return run, metrics_of(run)


def metrics_of(run):
    return {r.evaluated: r.metrics for r in selfsight.knn(str(run), ["device=cpu"])}


@pytest.fixture
def copy(measured, tmp_path):
    shutil.copytree(measured[0].parent, tmp_path / "x")
    return tmp_path / "x/run"


# Cached features ----------------------------------------------------------------------------------


def changed(data: bytes, what: str) -> bytes:
    if what == "cut":
        return data[: len(data) // 2]
    if what == "one bit":
        return data[:200] + bytes([data[200] ^ 1]) + data[201:]
    if what == "a bit of its header":
        return data[:70] + bytes([data[70] ^ 1]) + data[71:]
    if what == "another shape":
        file = io.BytesIO()
        np.save(file, np.zeros((3, 3), np.float16))
        return file.getvalue()
    return {"nothing": b"", "a pickle": b"\x80\x04\x95" + bytes(100)}[what]


@pytest.mark.parametrize(
    "what", ["cut", "one bit", "a bit of its header", "another shape", "nothing", "a pickle"]
)
def test_damaged_features_are_computed_again(copy, measured, what):
    files = [*copy.glob("features/*.npy"), *copy.parent.glob(".cache/pixels-*.npy")]
    assert len(files) == 6  # of two splits: encoder, untrained, pixels
    before = {f: f.read_bytes() for f in files}
    for file in files:
        file.write_bytes(changed(file.read_bytes(), what))
    assert metrics_of(copy) == measured[1]
    assert {f: f.read_bytes() for f in files} == before


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_file_of_features_is_replaced(copy, measured, what):
    for file in (*copy.glob("features/*"), *copy.parent.glob(".cache/pixels-*")):
        damage(file, what)
    assert metrics_of(copy) == measured[1]


@pytest.mark.parametrize("what", [*BYTES, "another value"])
def test_damaged_values_beside_the_features_are_made_again(copy, measured, what):
    """Such as the number that stored features are multiplied by."""
    files = list(copy.glob("features/*.json"))
    assert files
    for file in files:
        if what == "another value":
            value = json.loads(file.read_text())
            value |= {"scale": value["scale"] * 3} if "scale" in value else {"sha256": "0" * 64}
            file.write_text(json.dumps(value))
        else:
            damage(file, what)
    assert metrics_of(copy) == measured[1]
    assert len(list(copy.glob("features/*.json.damaged"))) == len(files)


def test_whole_features_are_not_computed_again(copy, measured, monkeypatch):
    monkeypatch.setattr(frozen_features, "extract", None)
    monkeypatch.setattr(frozen_features, "raw_pixels", None)
    assert metrics_of(copy) == measured[1]


# Results ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [*BYTES, *OTHERS])
def test_damaged_results_are_set_aside_and_said(copy, measured, what, capsys):
    damage(copy / "results.json", what)
    with pytest.raises(Damaged) as error:
        read_results(copy)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        compare([measured[0], copy])
    assert metrics_of(copy) == measured[1]
    assert os.path.lexists(copy / "results.json.damaged")
    assert {r["evaluated"]: r["metrics"] for r in read_results(copy)} == measured[1]


def test_a_changed_number_is_noticed_and_whole_records_stay(copy, measured):
    path = copy / "results.json"
    records = json.loads(path.read_text())
    records[0]["metrics"]["k20"] += 0.01
    records[1]["data"]["test"] = 1
    write_json(path, records)
    with pytest.raises(Damaged, match="does not agree with its checksum"):
        read_results(copy)
    selfsight.linear(str(copy), ["device=cpu", "untrained=false", "pixels=false"])
    kept = [(r["protocol"], r["evaluated"]) for r in read_results(copy)]
    assert kept == [("knn", records[2]["evaluated"]), ("linear", "encoder")]


def test_records_of_earlier_versions_have_no_checksum():
    assert read_results(LEGACY)


@pytest.mark.parametrize("what", [*BYTES, *OTHERS, "a changed number", "an empty object"])
@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ({"seconds": 1.5, "peak_memory_mib": 3, "device": "cpu", "threads": 1}, is_cost),
        ({"metrics": {"top1": 0.5}, "cost": {"seconds": 1}, "weights_sha256": "a"}, _is_result),
    ],
)
def test_damaged_records_of_work_are_set_aside(tmp_path, what, value, fits):
    path, said = tmp_path / "x.json", []
    write_json(path, sealed(value))
    assert read_or_set_aside(path, fits, said.append) == value
    write_json(path, value)  # as an earlier version wrote it
    assert read_or_set_aside(path, fits, said.append) == value
    assert not said
    if what == "a changed number":
        path.write_text(json.dumps(sealed(value)).replace("1", "2", 1).replace("0.5", "0.6"))
    elif what == "an empty object":
        write_json(path, {})
    else:
        damage(path, what)
    assert read_or_set_aside(path, fits, said.append) is None
    assert len(said) == 1
    assert os.path.lexists(tmp_path / "x.json.damaged")
    assert read_or_set_aside(path, fits, said.append) is None


@pytest.mark.parametrize("what", [*BYTES, *OTHERS])
def test_a_damaged_outcome_of_a_cell_is_done_again(tmp_path, what):
    damage(tmp_path / "outcome.json", what)
    assert read_outcome(tmp_path)["done"] == {}
    assert os.path.lexists(tmp_path / "outcome.json.damaged")


@pytest.mark.parametrize(
    "change", [{"done": [1]}, {"done": {"a": 1}}, {"cost": 1}, {"online": "x"}]
)
def test_an_outcome_of_other_types_is_done_again(tmp_path, change):
    outcome = {"done": {}, "online": None, "cost": {}, "test_images": None}
    write_json(tmp_path / "outcome.json", outcome | change)
    assert read_outcome(tmp_path) == outcome


@pytest.mark.parametrize("what", BYTES)
def test_a_damaged_job_is_one_line(tmp_path, what):
    damage(tmp_path / "job.json", what)
    with pytest.raises(Damaged):
        work(tmp_path)
    write_json(tmp_path / "job.json", {"job": {"x": 1}, "device": "cpu", "protocols": []})
    with pytest.raises(Damaged, match="not a description of a cell"):
        work(tmp_path)


# metrics.jsonl ------------------------------------------------------------------------------------

GOOD = b'{"step": 1, "epoch": 0.5, "seconds": 1.0, "loss": null}\n'


@pytest.mark.parametrize(
    "line",
    [
        b"3",
        b"null",
        b'{"a": 1}',
        b'{"step": "x"}',
        b'{"step": true, "epoch": 1, "seconds": 1}',
        b'{"step": 2, "epoch": null, "seconds": 1}',
        b'{"step": 2, "epoch": 1, "seconds": 1, "loss": [1]}',
        b'{"step": 2, "epoch": 1, "seconds": 1, "loss": NaN}',
        b"\xff\xfe",
        b"[" * 200_000,
        bytes(4096),
        b'{"step": 2, "x": "\xc3',
    ],
)
def test_damaged_lines_of_metrics_are_left_out_and_kept(tmp_path, line, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b"\n" + GOOD)
    assert [r["step"] for r in read_metrics(path)] == [1]
    MetricsFile(path, 9).close()
    assert path.read_bytes() == GOOD
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == line + b"\n" + GOOD
    path.write_bytes(GOOD + line)  # as a crash leaves it: nothing to say
    (tmp_path / "metrics.jsonl.damaged").unlink()
    MetricsFile(path, 9).close()
    assert path.read_bytes() == GOOD
    assert not (tmp_path / "metrics.jsonl.damaged").exists()


@pytest.mark.parametrize("what", ["a folder", "a pipe"])
def test_metrics_that_are_no_file_are_one_line(tmp_path, what):
    damage(tmp_path / "metrics.jsonl", what)
    with pytest.raises(Damaged):
        read_metrics(tmp_path / "metrics.jsonl")


def test_fingerprints_of_another_number_of_images_are_read_again(copy, measured):
    """They say which cached features and which overlap belong to the images."""
    for file in copy.parent.glob(".cache/fingerprints-*.npz"):
        with np.load(file) as saved:
            values = {key: saved[key][:-1] for key in saved.files}
        np.savez(file, **values)
    assert metrics_of(copy) == measured[1]
