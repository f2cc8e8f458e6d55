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
from tests.conftest import TINY

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


TOO_LATE = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import os, time
from selfsight import processes
processes.CHECK_EVERY, processes.SAVING = 0.05, 0.2
before = os.getppid()
print("ready", flush=True)
while os.getppid() == before:
    time.sleep(0.01)
processes.end_with_parent()
time.sleep(60)
'''], stdout=subprocess.PIPE, start_new_session=True,
    env={**os.environ, sys.argv[1]: str(os.getpid()) if sys.argv[1] == "SELFSIGHT_PARENT" else "x"})
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["SELFSIGHT_PARENT", "TORCHELASTIC_RUN_ID", "NEITHER"])
def test_a_process_ends_if_the_one_that_started_it_was_gone_before_it_looked(how):
    """The control: where nothing says who started it, it takes the parent that it has."""
    parent = subprocess.Popen([sys.executable, "-c", TOO_LATE, how], stdout=subprocess.PIPE)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    time.sleep(1.5 if how == "NEITHER" else 0)
    for _ in range(100 if how != "NEITHER" else 1):
        if not _alive(child):
            break
        time.sleep(0.1)
    goes_on = _alive(child)
    if goes_on:
        os.kill(child, signal.SIGKILL)
    assert goes_on == (how == "NEITHER")


def test_a_program_between_torchrun_and_this_one_is_no_orphan(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    script = "from selfsight.processes import _is_orphan_of_torchrun as f; import os; "
    script += "print(f(os.getppid()))"
    shell = ["sh", "-c", f"{sys.executable} -c '{script}'; true"]
    done = subprocess.run(shell, capture_output=True, text=True, start_new_session=True, timeout=60)
    assert done.stdout == "False\n"


@pytest.mark.slow
@pytest.mark.parametrize("when", ["its processes begin", "they train"])
def test_after_kill_9_of_torchrun_no_process_is_left(tmp_path, when):
    keys = [*TINY, "max_steps=1000000", "run=run"]
    words = ["--nproc-per-node", "2", "-m", "selfsight", "pretrain", "digits/simclr", *keys]
    mark = f"FAULTS_{os.getpid()}"
    agent = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", mark: "1"},
    )

    def marked() -> list[int]:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return [n for n in numbers if n != agent.pid and _alive(n) and mark in _environ(n)]

    while len(marked()) < 2:
        time.sleep(0.001)
    if when == "they train":
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.1)
    agent.kill()
    agent.wait()
    end = time.monotonic() + 40
    while marked() and time.monotonic() < end:
        time.sleep(0.2)
    left = marked()
    for number in left:
        os.kill(number, signal.SIGKILL)
    assert not left


def _environ(number: int) -> str:
    try:
        with open(f"/proc/{number}/environ", "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _alive(number: int) -> bool:
    try:
        with open(f"/proc/{number}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
