"""Files that several processes write, locks, and files that anything may have happened to."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from selfsight.errors import UserError
from selfsight.evaluate.protocols.context import EvaluationContext
from selfsight.evaluate.protocols.results import Result, read_results
from selfsight.files import (
    Damaged,
    is_intact,
    read_json,
    read_text,
    seal,
    sealed,
    set_aside,
    write_atomically,
    write_json,
    write_text,
)
from selfsight.locks import fcntl, locked

NO_FILE = ["a folder", "a pipe", "a device"]


def put(path, what):
    """In place of a file something that is none."""
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b"null", "a JSON NoneType instead of a dict"),
        (b"[1, 2]", "a JSON list instead of a dict"),
        (b"\xff\xfe{}", "byte 0 is no UTF-8 text"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_damaged_json_is_one_line(tmp_path, content, reason):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(Damaged, match=reason) as error:
        read_json(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", NO_FILE)
def test_what_is_no_plain_file_is_not_waited_for(tmp_path, what):
    path = put(tmp_path / "x", what)
    with pytest.raises(Damaged, match="it is"):
        read_text(path)
    assert not is_intact(path)


def test_a_text_file_has_a_limit(tmp_path):
    (tmp_path / "x").write_text("hello")
    assert read_text(tmp_path / "x", 5) == "hello"
    with pytest.raises(Damaged, match="5 bytes long, and at most 4"):
        read_text(tmp_path / "x", 4)


def test_no_change_of_a_sealed_value_passes(tmp_path):
    value = {"scale": 0.1, "who": "né", "pair": (1, 2), "deep": {"7": [None, True]}}
    path = tmp_path / "x.json"
    write_json(path, sealed(value))
    assert read_json(path) == json.loads(json.dumps(value))
    written = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.choice(len(written), 60, replace=False).tolist():
        changed = bytearray(written)
        changed[at] ^= 1 << int(rng.integers(7))
        path.write_bytes(changed)
        try:
            found = read_json(path)
        except Damaged:
            continue
        found.pop("checksum", None)
        # what passes has the same content: white space, or the key "checksum" itself
        assert {k: found.get(k) for k in value} == json.loads(json.dumps(value))


def test_a_value_without_a_checksum_is_of_an_earlier_version(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    assert read_json(tmp_path / "x.json") == {"a": 1}


def test_a_sealed_file_is_intact_until_one_bit_changes(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(bytes(1000))
    assert not is_intact(path)  # no seal
    seal(path)
    assert is_intact(path)
    path.write_bytes(bytes(999) + b"\1")
    assert not is_intact(path)


def test_set_aside_overwrites_nothing(tmp_path):
    path = tmp_path / "x.json"
    for content in "ab":
        path.write_text(content)
        set_aside(path)
    assert (tmp_path / "x.json.damaged").read_text() == "a"
    assert (tmp_path / "x.json.1.damaged").read_text() == "b"
    assert not path.exists()


def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / ".lock").symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(UserError, match="it is a link; remove it"), locked(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("what", ["a folder", "a pipe"])
def test_a_lock_that_is_no_file_is_refused(tmp_path, what):
    put(tmp_path / ".lock", what)
    with pytest.raises(UserError, match="cannot be locked"), locked(tmp_path):
        pass


def test_a_lock_that_was_left_behind_is_taken(tmp_path):
    (tmp_path / ".lock").write_text("4242 otherhost")
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == "4242 otherhost"


# Several processes

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
