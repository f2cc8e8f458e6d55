"""Two machines, each with a disk of its own and a cable between them: the run is that of one
machine, a lost network ends it on both in time, and the same command continues."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from selfsight import agreement
from selfsight.logging.log import read_metrics
from selfsight.peers import GRACE, Peers
from tests.conftest import TINY, heads
from tests.machines import Machine, two_machines
from tests.processes import Started, two_ranks

KEYS = ["pretrain", "digits/simclr", *TINY, *heads("simclr"), "precision=fp32", "run=r"]
ENCODER, METRICS = "r/encoder.safetensors", "r/metrics.jsonl"
Process = Started | subprocess.Popen


@pytest.fixture
def machines(tmp_path):
    with two_machines(tmp_path) as both:
        yield both


def encoder_of_one_machine(*keys: str, cwd: Path) -> bytes:
    done = two_ranks(*keys, cwd=cwd)
    assert [p.returncode for p in done] == [0, 0], done[0].stderr
    return (cwd / ENCODER).read_bytes()


def wait_for_step(step: int, machine: Machine, processes: list[Process]) -> None:
    until = time.monotonic() + 120
    while not machine.seen(METRICS).exists() or steps_of(machine) < step:
        assert time.monotonic() < until
        assert [p.poll() for p in processes] == [None, None]
        time.sleep(0.02)


def steps_of(machine: Machine) -> int:
    return len(read_metrics(machine.seen(METRICS)))


def lose_for_three_seconds(machines: list[Machine], processes: list[Process]) -> None:
    """No step is possible meanwhile, so that the connection was in use."""
    machines[0].link("down")
    time.sleep(0.5)
    before = steps_of(machines[0])
    time.sleep(2.5)
    assert steps_of(machines[0]) == before
    machines[0].link("up")
    wait_for_step(before + 3, machines[0], processes)


def seconds_to_end(processes: list[Process], longest: float) -> list[float | None]:
    """How long each of them runs on; None for one that does not end in time."""
    began, ends = time.monotonic(), [None] * len(processes)
    while None in ends and time.monotonic() - began < longest:
        for n, process in enumerate(processes):
            if ends[n] is None and process.poll() is not None:
                ends[n] = time.monotonic() - began
        time.sleep(0.05)
    return ends


def own_lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("selfsight: ")]


def is_lost(place: int, minutes: float) -> str:
    process = ("process 0, or the launcher,", "process 1 of 2")[place]
    return f"selfsight: timeout_minutes={minutes:g}: {process} has given no sign of life"


@pytest.mark.slow
def test_a_lost_network_ends_both_machines_and_the_same_command_continues(machines, tmp_path):
    """After one of 3 seconds they go on."""
    (tmp_path / "one").mkdir()
    keys = [*KEYS, "max_steps=80", "timeout_minutes=0.1", "checkpoint.every_steps=5"]
    whole = encoder_of_one_machine(*keys, cwd=tmp_path / "one")
    ranks = [machine.start(*keys) for machine in machines]
    wait_for_step(6, machines[0], ranks)
    lose_for_three_seconds(machines, ranks)
    machines[0].link("down")
    ends = seconds_to_end(ranks, 60)
    assert None not in ends
    assert max(ends) < 6 + 3 * GRACE
    done = [rank.wait() for rank in ranks]
    assert [p.returncode for p in done] == [2, 2]
    for place, process in enumerate(done):
        (line,) = own_lines(process.stderr)
        assert line.startswith(is_lost(1 - place, 0.1))
        assert "Traceback" not in process.stderr
    assert not machines[0].seen(ENCODER).exists()
    machines[0].link("up")
    done = [rank.wait() for rank in [machine.start(*keys) for machine in machines]]
    assert [p.returncode for p in done] == [0, 0], done
    assert "Continuing after step" in done[0].stderr
    assert machines[0].seen(ENCODER).read_bytes() == whole
    assert not machines[1].seen("r").exists()


def without_guard() -> None:
    Peers._guard = lambda self: None


@pytest.mark.slow
def test_without_a_guard_the_other_machine_waits_for_its_network(machines):
    """The control: a call of the store has no timeout."""
    keys = [*KEYS, "max_steps=100000", "timeout_minutes=0.1"]
    ranks = [machine.start(*keys, first=without_guard) for machine in machines]
    wait_for_step(6, machines[0], ranks)
    machines[0].link("down")
    first, second = seconds_to_end(ranks, 40)
    ranks[1].send_signal(9)
    assert first is not None
    assert second is None


def test_a_network_that_does_not_lead_to_the_others(machines):
    keys = [*KEYS, "max_steps=1"]
    ranks = [machine.start(*keys, GLOO_SOCKET_IFNAME="lo") for machine in machines]
    done = [rank.wait(60) for rank in ranks]
    assert [p.returncode for p in done] == [2, 2]
    (line,) = [line for process in done for line in own_lines(process.stderr)]
    assert "GLOO_SOCKET_IFNAME=lo: the processes have met at 10.77.0.1:29400, but" in line
    assert "cannot reach another one" in line


def test_a_machine_that_does_not_come_is_waited_for_no_longer_than_asked(machines):
    alone = machines[0].start(*KEYS, "max_steps=1", "timeout_minutes=0.05").wait(60)
    assert alone.returncode == 2
    (line,) = own_lines(alone.stderr)
    assert "not all 2 processes have met there within timeout_minutes=0.05" in line


def test_a_machine_without_the_encoder_ends_the_evaluation_on_both(machines):
    """It fails before it joins the other, which waits. With the encoder both take part; the first
    machine alone has the classifier's checkpoints."""
    ranks = [machine.start(*KEYS, "max_steps=1") for machine in machines]
    assert [rank.wait().returncode for rank in ranks] == [0, 0]
    keys = ["linear-augmented", "r", "device=cpu", "epochs=1", "batch_size=256"]
    done = [rank.wait(60) for rank in [machine.start(*keys) for machine in machines]]
    assert [p.returncode for p in done] == [2, 2]
    told = [line for process in done for line in own_lines(process.stderr)]
    assert told == ["selfsight: process 1 of 2: 'r': no such run folder or file of weights"]
    machines[1].seen("r").mkdir()
    machines[1].seen(ENCODER).write_bytes(machines[0].seen(ENCODER).read_bytes())
    done = [rank.wait(120) for rank in [machine.start(*keys) for machine in machines]]
    assert [p.returncode for p in done] == [0, 0], done
    assert "top-1" in done[0].stdout
    assert not list(machines[1].seen("r").rglob("*.pt"))


# With torchrun ------------------------------------------------------------------------------------


def outcome(process: subprocess.Popen) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=240)
    return process.returncode, stderr


def each_for_itself() -> None:
    agreement.state_by_first = lambda work, device, keep: work()


def half_run(machines: list[Machine], start: Callable[[Machine], Process]) -> None:
    """A finished run, of which the first machine then has the checkpoints of the first half."""
    for process in [start(machine) for machine in machines]:
        code, text = outcome(process)
        assert code == 0, text
    files = sorted(machines[0].seen("r/checkpoints").iterdir())
    for file in files[3:]:
        file.unlink()
    machines[0].seen(ENCODER).unlink()
    assert not machines[1].seen("r").exists()


HALF = [*KEYS, "max_steps=6", "checkpoint.every_steps=1", "checkpoint.keep=9"]


@pytest.mark.slow
def test_torchrun_on_two_machines_gives_the_encoder_of_one(machines, tmp_path):
    """Also continued where only the first machine has the checkpoint; the control loads on each
    machine what is there."""
    (tmp_path / "one").mkdir()
    whole = encoder_of_one_machine(*HALF, cwd=tmp_path / "one")
    half_run(machines, lambda machine: machine.torchrun(*HALF))
    control = [*HALF, "timeout_minutes=0.1"]
    ranks = [machine.start(*control, first=each_for_itself) for machine in machines]
    codes = [rank.wait(120).returncode for rank in ranks]
    assert codes != [0, 0] or machines[0].seen(ENCODER).read_bytes() != whole
    for file in machines[0].seen("r/checkpoints").iterdir():
        if int(file.name[5:13]) > 3:
            file.unlink()
    machines[0].seen(ENCODER).unlink(missing_ok=True)
    done = [outcome(p) for p in [machine.torchrun(*HALF) for machine in machines]]
    assert [code for code, _ in done] == [0, 0], done
    assert "Continuing after step 3 of 6" in done[0][1] + done[1][1]
    assert machines[0].seen(ENCODER).read_bytes() == whole


@pytest.mark.slow
def test_torchrun_ends_with_a_lost_network(machines, tmp_path):
    """With a number for each machine. Agents that meet by c10d wait in their own store for as long
    as TCP does, after their processes have ended."""
    (tmp_path / "one").mkdir()
    keys = [*KEYS, "max_steps=80", "timeout_minutes=0.1", "checkpoint.every_steps=5"]
    whole = encoder_of_one_machine(*keys, cwd=tmp_path / "one")
    agents = [machine.torchrun(*keys, elastic=False) for machine in machines]
    wait_for_step(6, machines[0], agents)
    lose_for_three_seconds(machines, agents)
    machines[0].link("down")
    ends = seconds_to_end(agents, 90)
    assert None not in ends
    assert max(ends) < 6 + 3 * GRACE + 10  # of torchrun
    for place, agent in enumerate(agents):
        code, text = outcome(agent)
        assert code != 0
        (line,) = own_lines(text)
        assert line.startswith(is_lost(1 - place, 0.1))
    machines[0].link("up")
    done = [outcome(p) for p in [machine.torchrun(*keys) for machine in machines]]
    assert [code for code, _ in done] == [0, 0], done
    assert machines[0].seen(ENCODER).read_bytes() == whole
