"""Files that several processes write, and locks."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from selfsight.errors import UserError
from selfsight.evaluate.protocols.context import EvaluationContext
from selfsight.evaluate.protocols.results import Result, read_results
from selfsight.files import fcntl, locked, write_atomically, write_text

locks = pytest.mark.skipif(fcntl is None, reason="Windows has no such locks")


def test_processes_with_equal_numbers_write_one_file(tmp_path, monkeypatch):
    """As in two containers: the second begins and ends while the first is writing."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "features.npy"

    def slowly(temporary):
        temporary.write_text("first")
        write_text(path, "second")

    write_atomically(path, slowly)
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["features.npy"]


@locks
def test_a_lock_excludes_others_or_makes_them_wait(tmp_path):
    order = []

    def second():
        with locked(tmp_path, wait=True):
            order.append("second")

    with locked(tmp_path):
        with pytest.raises(UserError, match="another process"), locked(tmp_path):
            pass
        with locked(tmp_path, ".other"):
            pass
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.05)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


@locks
def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path):
    """Else the next process would make another file and both would hold "the" lock."""
    waiting = threading.Thread(target=lambda: hold.__enter__())
    hold = locked(tmp_path, wait=True)
    with locked(tmp_path):
        waiting.start()
        waiting.join(0.05)
        (tmp_path / ".lock").unlink()
    waiting.join()
    with pytest.raises(UserError, match="another process"), locked(tmp_path):
        pass
    hold.__exit__(None, None, None)


def evaluation(folder, seed: int) -> None:
    record = ("knn", "knn", 2, "encoder", {"k20": 0.5}, {}, seed, {}, "ab", {"test": 5})
    target = SimpleNamespace(folder=folder)
    EvaluationContext(target, None, None, None, False).keep([Result(*record)])


@locks
def test_evaluations_at_once_keep_all_results(tmp_path):
    with locked(tmp_path), ThreadPoolExecutor(8) as pool:  # a training may be running, too
        list(pool.map(lambda seed: evaluation(tmp_path, seed), range(16)))
    assert sorted(record["seed"] for record in read_results(tmp_path)) == list(range(16))
