"""`selfsight bench` end to end: pretrainings in real processes, stopped, broken and continued."""

import csv
import json
import signal
import time

import pytest
import yaml

from selfsight.errors import UserError
from selfsight.grid import bench as work
from selfsight.grid.plan import grids, plan, read_grid, title
from selfsight.grid.stored import read_stored
from selfsight.interop.cli.processes import COMMAND
from tests import own_files
from tests.conftest import TINY
from tests.processes import ForkedCell, Started

GRID = {
    "data": {"digits": {"recipes": "digits", "keys": {"epochs": 1}}},
    "methods": ["simclr"],
    "seeds": [0, 1],
    "protocols": [
        {"kind": "knn"},
        {"kind": "finetune", "keys": {"fraction": 0.1, "max_steps": 2}},
    ],
    "overrides": [*TINY, "max_steps=3"],
}


def write(folder, name: str = "grid.yaml", **changes) -> str:
    (folder / name).write_text(yaml.safe_dump({**GRID, **changes}))
    return name


def rows(folder) -> dict[tuple[str, str], dict]:
    with (folder / "table.csv").open() as file:
        return {(r["method"], r["seed"]): r for r in csv.DictReader(file)}


@pytest.fixture
def bench(command, monkeypatch, tmp_path):
    """`selfsight bench` in this process, its cells in processes that need not import torch."""
    monkeypatch.setattr(work.subprocess, "Popen", ForkedCell)
    return lambda *arguments: command("bench", *arguments, "-o", "out", cwd=tmp_path)


def test_a_grid_from_nothing_to_its_table(tmp_path, bench):
    grid = [write(tmp_path), "--compare", "simclr", "untrained"]
    assert "[4/4] digits/" in bench(*grid).stderr
    table = rows(tmp_path / "out")
    methods = ("untrained", "pixels", "simclr")
    assert table.keys() == {(m, s) for m in methods for s in ("0", "1")}
    for (method, _), row in table.items():
        assert 0 < float(row["knn"]) < 1
        assert bool(row["minutes"]) == (method == "simclr")
        assert bool(row["finetune_10"]) == (method != "pixels")
    assert table["pixels", "0"]["knn"] == table["pixels", "1"]["knn"]
    assert table["simclr", "0"]["knn"] != table["simclr", "1"]["knn"]
    # a second call does nothing but print
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "cells").rglob("*")}
    again = bench(*grid)
    assert "4 cells, 4 of them done" in again.stderr
    assert "digits knn: simclr/default" in again.stdout
    assert "paired p = " in again.stdout
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "cells").rglob("*")} == before
    # the cells alone say what the table says
    stored = read_stored(tmp_path / "out")
    assert stored.notes == ()
    (tmp_path / "out" / "table.json").unlink()
    alone = read_stored(tmp_path / "out")
    assert sorted(map(repr, alone.cells)) == sorted(map(repr, stored.cells))
    assert alone.about["hardware"] == stored.about["hardware"]
    # a larger grid keeps what is there
    larger = write(tmp_path, "larger.yaml", methods=["simclr", "byol"], seeds=[0])
    more = bench(larger)
    assert "3 cells, 2 of them done" in more.stderr
    assert ("byol", "0") in rows(tmp_path / "out")
    text = (tmp_path / "out" / "table.md").read_text()
    assert "360 test images" in text
    assert "| byol" in text
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    assert content["cells"]


def test_a_grid_of_several_starts(tmp_path, bench, command):
    """Each has rows of its own, and a row of what it is."""
    for seed in (5, 6):
        keys = [*TINY, "max_steps=2", f"seed={seed}", "--run", f"begin{seed}"]
        assert command("pretrain", "digits/simclr", *keys, cwd=tmp_path).returncode == 0
    starts = {"random": None, "five": "begin5", "six": "begin6"}
    grid = write(
        tmp_path,
        starts=starts,
        methods=["simclr", "byol"],
        seeds=[0],
        protocols=[{"kind": "knn"}],
        overrides=[*TINY, "max_steps=1"],
    )
    done = bench(grid)
    assert done.returncode == 0, done.stdout
    with (tmp_path / "out" / "table.csv").open() as file:
        table = {(r["method"], r["backbone"]): float(r["knn"]) for r in csv.DictReader(file)}
    methods = [(m, name) for m in ("simclr", "byol", "untrained") for name in starts]
    assert set(table) == {*methods, ("start", "five"), ("start", "six"), ("pixels", "")}
    assert len({table["untrained", name] for name in starts}) == 1
    for seed, name in ((5, "five"), (6, "six")):
        (record,) = json.loads(
            command("knn", f"begin{seed}", "untrained=false", "pixels=false", cwd=tmp_path)
            and (tmp_path / f"begin{seed}" / "results.json").read_text()
        )
        assert table["start", name] == pytest.approx(record["metrics"]["k20"])


def test_a_cell_that_fails_is_shown_and_the_others_go_on(tmp_path, bench):
    grid = write(tmp_path, methods=["supcon", "byol"], seeds=[0], protocols=[{"kind": "knn"}])
    # something of no use where the cell's run should be
    jobs = plan(read_grid(str(tmp_path / grid)))
    (job,) = (job for job in jobs if job.method == "supcon")
    run = tmp_path / "out" / "cells" / job.folder / "run"
    run.mkdir(parents=True)
    (run / "notes.txt").write_text("mine")
    done = bench(grid)
    assert done.returncode == 1
    assert "is not a run folder" in done.stderr
    assert "unfinished: supcon, seed 0" in done.stdout
    assert (run / "notes.txt").read_text() == "mine"
    table = rows(tmp_path / "out")
    assert table["byol", "0"]["knn"]
    assert not table["supcon", "0"]["knn"]
    (run / "notes.txt").unlink()
    run.rmdir()
    mended = bench(grid)
    assert "3 cells, 2 of them done" in mended.stderr
    assert rows(tmp_path / "out")["supcon", "0"]["knn"]


def test_cells_run_the_code_that_the_user_names(tmp_path, bench):
    """And no other: the grid's file may be somebody else's."""
    own_files.write(tmp_path)
    keys = {"epochs": 1, "data.source": "my_data.py:Photos"}
    data = {"digits": {"recipes": "digits/simclr", "keys": keys}}
    protocols = [{"kind": "knn", "keys": {"data.source": "my_data.py:Photos"}}]
    grid = write(tmp_path, data=data, seeds=[0], protocols=protocols)
    refused = bench(grid)
    assert refused.returncode == 2
    assert "is code of your own, which runs only if you name it" in refused.stderr
    done = bench(grid, "data.source=my_data.py:Photos")
    assert done.returncode == 0, done.stdout
    assert rows(tmp_path / "out")["simclr", "0"]["knn"]


def test_a_stopped_grid_goes_on(tmp_path, bench):
    quick = {"seeds": [0], "protocols": [{"kind": "knn"}]}
    grid = write(tmp_path, **quick, overrides=[*TINY, "epochs=6", "checkpoint.every_steps=1"])
    process = Started("bench", grid, "-o", "out", "--jobs", "2", cwd=tmp_path)
    while not list(tmp_path.glob("out/cells/*simclr*/run/checkpoints/step-*.pt")):
        assert process.poll() is None, process.wait().stderr
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    done = process.wait(120)
    assert done.returncode == 128 + signal.SIGTERM
    assert "Resume with: python -m selfsight bench" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    bench(grid, "--jobs", "1")
    (log,) = (tmp_path / "out").glob("cells/digits-simclr-*/log.txt")
    assert "Continuing after step" in log.read_text()
    assert rows(tmp_path / "out")["simclr", "0"]["knn"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["simcrl"]}, "simcrl is not a method. Did you mean"),
        ({"methods": []}, "methods"),
        ({"seed": [0]}, "Unknown key 'seed'. Did you mean 'seeds'"),
        ({"protocols": [{"kind": "lin"}]}, "protocols.0.kind=lin"),
        (
            {"protocols": [{"kind": "knn"}, {"kind": "knn"}]},
            "two protocols give the same column",
        ),
        ({"protocols": [{"kind": "finetune", "keys": {"fraction": 0.3}}]}, "fraction 0.01"),
        ({"protocols": [{"kind": "finetune", "keys": {"epoch": 3}}]}, "Unknown key 'epoch'"),
        (
            {"protocols": [{"kind": "finetune", "protocol": "linear-augmented"}]},
            "is a protocol for",
        ),
        ({"overrides": ["optimizer.rl=3"]}, "Unknown key 'optimizer.rl'"),
        ({"starts": {"a": "runs/nowhere"}}, "weights=runs/nowhere: there is no such file or run"),
        ({"starts": {"../a": None}}, "cannot be part of a folder name"),
        ({"data": {"digits": {"recipes": "digitz"}}}, "'digitz': no such recipe or file"),
        ({"backbones": {"big": {"name": "resnet10"}}}, None),
    ],
)
def test_a_grid_that_does_not_fit_is_refused_before_anything_runs(tmp_path, changes, message):
    path = tmp_path / write(tmp_path, **changes)
    if message is None:  # only the cell can know: it is one of the failures that are shown
        assert len(plan(read_grid(str(path)))) == 4
        return
    with pytest.raises(UserError) as error:
        work.bench(read_grid(str(path)), tmp_path / "out")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_grid(tmp_path):
    with pytest.raises(UserError, match=r"no such grid or file\. Did you mean 'digits'"):
        read_grid("digit")


@pytest.mark.parametrize("name", grids())
def test_shipped_grids_fit(name):
    grid = read_grid(name)
    jobs = plan(grid)
    assert len({job.folder for job in jobs}) == len(jobs)
    assert len(grid.methods) >= 8
    assert title(name)


def test_places(monkeypatch):
    monkeypatch.setattr(work.os, "cpu_count", lambda: 8)
    assert work.worker_devices("cpu", None, 100) == (["cpu"] * 8, 1)
    assert work.worker_devices("cpu", 2, 100) == (["cpu"] * 2, 4)
    assert work.worker_devices("cpu", None, 3) == (["cpu"] * 3, 2)
    assert work.worker_devices("cuda:1", None, 5) == (["cuda:1"], 8)
    monkeypatch.setattr(work.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(work.torch.cuda, "device_count", lambda: 4)
    assert work.worker_devices("auto", None, 100)[0] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert work.worker_devices("auto", 6, 100)[0][4:] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize("where", ["data", "backbones"])
@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/tmp/x",
        "a/b",
        "a\\b",
        "..",
        ".",
        ".hidden",
        "",
        "a\0b",
        "a\nb",
        "\x1b[31m",
        "x" * 65,
    ],
)
def test_a_name_that_would_leave_the_grids_folder_is_refused(tmp_path, where, name):
    value = GRID["data"]["digits"] if where == "data" else {}
    (tmp_path / "grid.yaml").write_text(json.dumps({**GRID, where: {name: value}}))
    with pytest.raises(UserError, match="cannot be part of a folder name"):
        read_grid(str(tmp_path / "grid.yaml"))


def test_names_of_folders_that_people_use(tmp_path):
    data = dict.fromkeys(("STL-10", "é 2", "v1.0+x", "a=1,b=2@3_"), GRID["data"]["digits"])
    for job in plan(read_grid(str(tmp_path / write(tmp_path, data=data)))):
        assert "/" not in job.folder


def test_processes_do_not_import_from_the_current_folder(tmp_path, monkeypatch):
    """`python -m` puts it first on the import path: a random.py there would break every cell."""
    commands = []

    class Process:
        def __init__(self, command, **_):
            commands.append(command)

        def wait(self):
            return 0

    monkeypatch.setattr(work.subprocess, "Popen", Process)
    grid = read_grid(str(tmp_path / write(tmp_path, seeds=[0])))
    work.bench(grid, tmp_path / "out", jobs=1, device="cpu", say=lambda _: None)
    for command in [*commands, COMMAND]:
        assert "-P" in command[: command.index("-m")]
    assert commands
