"""A file that is mapped into memory and cut short ends a command with one line."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from selfsight.evaluate import features
from selfsight.logging.log import read_metrics
from tests.conftest import TINY, selfsight
from tests.processes import Started

SCRIPT = """
import os, sys
import numpy as np, torch
from selfsight import mapped
how, path, handled = sys.argv[1:]
if handled == "handled":
    mapped.end_with_a_line(lambda line: print("selfsight: " + line, file=sys.stderr, flush=True))
array = np.load(path, mmap_mode="c")
os.truncate(path, 8192)
if how == "numpy":  # which keeps Python's lock
    array.sum()
elif how == "torch":  # in threads of its own
    torch.set_num_threads(4)
    torch.from_numpy(array).exp().sum()
print("went on")
"""


@pytest.mark.parametrize("how", ["numpy", "torch"])
@pytest.mark.parametrize("handled", ["handled", "as it was"])
def test_a_line_names_the_file(tmp_path, how, handled):
    """The control: without the handler the process ends by the signal, without a word."""
    path = tmp_path / "a (deleted) name.npy"
    np.save(path, np.zeros((2000, 1000), np.float32))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how, str(path), handled],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if handled == "handled":
        assert done.returncode == 2
        assert done.stderr.startswith(f"selfsight: '{path}' was cut short, or its disk")
        assert len(done.stderr.splitlines()) == 1
    else:
        assert (done.returncode, done.stderr) == (-signal.SIGBUS, "")
    assert done.stdout == ""


def cut_features() -> None:
    """Cut a file of features when it is opened to be used."""
    real = features.read_features

    def read_features(file):
        found = real(file)
        os.truncate(file, 100)
        return found

    features.read_features = read_features


def test_features_that_are_cut_short(tmp_path):
    selfsight("pretrain", "digits/simclr", *TINY, "max_steps=2", "run=run", cwd=tmp_path)
    end = Started("knn", "run", "untrained=false", cwd=tmp_path, prepare=cut_features).wait(100)
    assert end.returncode == 2, end.stderr
    last = end.stderr.splitlines()[-1]
    assert last.startswith("selfsight: '")
    assert ".npy' was cut short" in last


@pytest.mark.slow
def test_tables_of_the_library_datasets_that_are_cut_short(tmp_path):
    """It maps its files: a training that reads them ends with a line."""
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 3), dtype=np.uint8)
    rows = {"image": [Image.fromarray(p) for p in pixels]}
    kinds = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(tmp_path / "set")
    keys = ["data.path=set", "data.in_memory=false", "max_steps=100000"]
    process = Started(
        *["pretrain", "digits/simclr", *TINY, *keys, "evaluate.probe=false", "run=run"],
        cwd=tmp_path,
    )
    while process.poll() is None and len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < 3:
        time.sleep(0.05)
    (table,) = (tmp_path / "set").glob("*.arrow")
    os.truncate(table, 4096)
    end = process.wait(60)
    assert end.returncode == 2, end.stderr
    assert f"'{table}' was cut short" in end.stderr.splitlines()[-1]
