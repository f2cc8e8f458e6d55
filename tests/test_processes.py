"""Signals at any moment, and a parent process that is gone."""

import os
import signal
import subprocess
import sys
import time

import pytest

from selfsight import cli, processes
from selfsight.cli import app as commands
from selfsight.processes import Stopped, stopped_by_signals

SIGNALS = [signal.SIGTERM, signal.SIGINT]
BLOCKED = """
import ctypes, os, signal, sys
from selfsight import processes
from selfsight.processes import stopped_by_signals
processes.GRACE = 0.2
signal.signal(signal.SIGINT, signal.default_int_handler)
with stopped_by_signals(lambda number: print("said", number, file=sys.stderr)):
    print(os.getpid(), flush=True)
    lock = ctypes.create_string_buffer(64)
    for _ in range(2):  # the second waits for ever, also after a signal
        ctypes.CDLL(None).pthread_mutex_lock(lock)
"""
LOST = """
import os, signal, sys, time
from selfsight.processes import stopped_by_signals
class Ends:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
with stopped_by_signals(lambda number: print("said", number, file=sys.stderr)):
    Ends()
    print("went on")
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import signal, time
from selfsight import processes
processes.CHECK_EVERY, processes.SAVING = 0.05, 0.2
signal.signal(signal.SIGTERM, signal.SIG_IGN)
processes.end_with_parent()
print("ready", flush=True)
time.sleep(60)
'''], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def handlers():
    before = {n: signal.getsignal(n) for n in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_an_exception_that_nothing_on_the_way_takes_for_an_error(number):
    with pytest.raises(Stopped) as stop, stopped_by_signals(lambda number: None):
        _signal_in_a_try(number)
    assert stop.value.number == number


def _signal_in_a_try(number: int) -> None:
    try:
        os.kill(os.getpid(), number)
        time.sleep(1)
    except Exception:
        raise AssertionError from None


@pytest.mark.parametrize("number", SIGNALS)
def test_any_command_ends_with_one_line(monkeypatch, capsys, number):
    """While it starts, or in an evaluation: where nothing waits for a signal."""

    def signalled(**_):
        os.kill(os.getpid(), number)
        time.sleep(1)

    cli.register_all()
    monkeypatch.setattr(commands, "app", signalled)
    monkeypatch.setattr(sys, "argv", ["selfsight", "knn", "a run"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 128 + number
    said = capsys.readouterr().err
    assert said == (
        f"selfsight: stopped by {signal.Signals(number).name}; what was saved before is kept. "
        f"Continue with: selfsight knn 'a run'\n"
    )


def test_a_signal_that_was_ignored_at_the_start_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and shells do
    with stopped_by_signals(lambda number: None):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_handler_that_a_training_sets_decides_alone(monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.05)
    noted = []
    with stopped_by_signals(lambda number: os._exit(1)):
        signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
    assert noted == [signal.SIGTERM]


@pytest.mark.parametrize(("script", "sent"), [(BLOCKED, True), (LOST, False)])
def test_where_no_exception_can_be_raised_the_process_ends(script, sent):
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    if sent:
        process.stdout.readline()
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=20)
    assert (process.returncode, out, said) == (143, "", "said 15\n")


def test_a_process_ends_with_the_one_that_started_it():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not _alive(child):
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("it goes on")


def _alive(number: int) -> bool:
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
