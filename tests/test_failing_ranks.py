"""One process of several loses its data or stands still: all end in one line, or all go on."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from selfsight.data.bad import read_bad
from selfsight.logging.log import read_metrics
from tests.conftest import TINY
from tests.data.test_bad import make_folder
from tests.processes import start_ranks

KEYS = ["data.path=images", "data.in_memory=false", "evaluate.probe=false", "data.workers=1"]


@pytest.fixture
def places(tmp_path) -> list[Path]:
    """A folder for each process, each with the images: as two machines with disks of their own."""
    made = make_folder(tmp_path / "0" / "images", 128, set())
    shutil.copytree(made, tmp_path / "1" / "images")
    return [tmp_path / "0", tmp_path / "1"]


def start(places: list[Path], *keys: str):
    run = places[0].parent / "run"
    words = ["pretrain", "digits/simclr", *TINY, *KEYS, *keys, f"run={run}"]
    return run, start_ranks([words] * 2, places, OMP_NUM_THREADS="1")


def wait_for_step(run: Path, step: int, ranks) -> None:
    while len(read_metrics(run / "metrics.jsonl")) < step:
        assert [rank.poll() for rank in ranks] == [None, None]
        time.sleep(0.01)


def test_one_process_loses_its_images(places):
    run, ranks = start(places, "epochs=100000", "data.patience=1")
    wait_for_step(run, 3, ranks)
    os.rename(places[1] / "images", places[1] / "away")
    began = time.monotonic()
    ends = [rank.wait(60) for rank in ranks]
    assert time.monotonic() - began < 20
    assert [end.returncode for end in ends] == [2, 2]
    said = "".join(end.stderr for end in ends)
    assert said.count("the folder is gone, or is another one than at the start") == 1
    assert "data.patience=1 seconds" in said
    assert "Traceback" not in said
    assert read_bad(run / "bad_images.txt") == []


@pytest.mark.slow
def test_images_that_come_back_change_nothing(places, tmp_path):
    run, ranks = start(places, "max_steps=60", "epochs=60", "data.patience=60")
    wait_for_step(run, 3, ranks)
    os.rename(places[1] / "images", places[1] / "away")
    threading.Timer(1, os.rename, [places[1] / "away", places[1] / "images"]).start()
    ends = [rank.wait(100) for rank in ranks]
    assert [end.returncode for end in ends] == [0, 0], ends[0].stderr + ends[1].stderr
    assert read_bad(run / "bad_images.txt") == []
    assert (run / "encoder.safetensors").read_bytes() == undisturbed(places, run)


def undisturbed(places: list[Path], run: Path) -> bytes:
    """The encoder of the same run, in which nothing fails."""
    run.rename(run.with_name("disturbed"))
    again, ranks = start(places, "max_steps=60", "epochs=60")
    assert [rank.wait(100).returncode for rank in ranks] == [0, 0]
    whole = (again / "encoder.safetensors").read_bytes()
    shutil.rmtree(again)
    again.with_name("disturbed").rename(again)
    return whole


@pytest.mark.parametrize("stopped", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_stands_still(places, stopped):
    """The other one ends with a line; the one that stood still ends when it goes on."""
    run, ranks = start(places, "epochs=100000", "timeout_minutes=0.05", "data.patience=1")
    wait_for_step(run, 3, ranks)
    ranks[stopped].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    other = ranks[1 - stopped].wait(60)
    assert 2 < time.monotonic() - began < 30
    assert other.returncode == 2
    last = other.stderr.splitlines()[-1]
    assert "timeout_minutes=0.05" in last
    assert "Traceback" not in other.stderr
    ranks[stopped].send_signal(signal.SIGCONT)
    end = ranks[stopped].wait(60)
    assert end.returncode != 0
    assert "Traceback" not in end.stderr


@pytest.mark.slow
def test_a_process_that_goes_on_in_time_changes_nothing(places):
    run, ranks = start(places, "max_steps=60", "epochs=60", "timeout_minutes=0.5")
    wait_for_step(run, 3, ranks)
    ranks[1].send_signal(signal.SIGSTOP)
    time.sleep(2)
    ranks[1].send_signal(signal.SIGCONT)
    ends = [rank.wait(100) for rank in ranks]
    assert [end.returncode for end in ends] == [0, 0], ends[0].stderr + ends[1].stderr
    assert (run / "encoder.safetensors").read_bytes() == undisturbed(places, run)
