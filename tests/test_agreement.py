"""Processes of a run: rank 0 decides, none waits in vain, and a mistake of one ends all."""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from selfsight import agreement, cli
from selfsight.errors import UserError
from selfsight.processes import SIGNALS
from selfsight.train import session
from selfsight.train.checkpoint import CheckpointConfig
from selfsight.train.requests import Requests
from tests.conftest import TINY, heads
from tests.processes import exits_of_ranks, start_ranks, two_ranks

CPU = torch.device("cpu")


def mistake_in_a_step(rank: int, where: int | None, kind: str) -> None:
    """One rank fails while the other waits for it in a collective, or is at work; None: both."""
    try:
        with agreement.joined(CPU, 60):
            if where not in (rank, None):
                dist.all_reduce(torch.zeros(1)) if kind == "collective" else time.sleep(60)
            Path("failed").write_text(str(time.monotonic()))
            raise ValueError("a bug") if kind == "bug" else UserError("lr=9: too high")
    except UserError as error:
        if not error.everywhere or rank == 0:
            print(f"selfsight: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


@pytest.mark.parametrize(
    ("kind", "where"),
    [("collective", 0), ("collective", 1), ("work", 1), ("bug", 1), ("all", None)],
)
def test_a_mistake_ends_all_within_five_seconds_with_one_line(kind, where, tmp_path):
    codes, errors = exits_of_ranks(mistake_in_a_step, where, kind, cwd=tmp_path)
    assert time.monotonic() - float((tmp_path / "failed").read_text()) < 8  # 5 on a quiet machine
    said = "process 1 of 2: " if where else ""
    said += "ValueError: a bug" if kind == "bug" else "lr=9: too high"
    told = [line for text in errors for line in text.splitlines() if line.startswith("selfsight: ")]
    assert told == [f"selfsight: {said}"]
    if kind == "bug":  # its traceback is where it happened
        assert "Traceback" in errors[where]
        assert codes == [2, 1]
    else:
        assert codes == [2, 2]


def ended_by_its_launcher(rank: int) -> None:
    """torchrun ends the others by SIGTERM when one has ended after a mistake."""

    def run() -> int:
        try:
            with agreement.joined(CPU, 60):
                Path(f"pid{rank}").write_text(str(os.getpid()))
                agreement.by_all(lambda: None)
                if rank == 0:
                    time.sleep(60)
                raise UserError("data.path=x: none")
        except UserError as error:
            cli._say_mistake(error)
            return 2

    cli._run = run
    try:
        cli.main()
    finally:
        if rank == 1:
            os.kill(int(Path("pid0").read_text()), signal.SIGTERM)


def test_a_launcher_that_ends_the_others_does_not_hide_the_mistake(tmp_path):
    codes, errors = exits_of_ranks(ended_by_its_launcher, cwd=tmp_path)
    assert codes == [2, 2]
    assert errors == ["selfsight: process 1 of 2: data.path=x: none\n", ""]


def test_a_mistake_that_all_make_is_one_line(tmp_path):
    """Before they join, and in a step."""
    early = two_ranks(*KEYS, "timeout_minutes=0", "run=a", cwd=tmp_path)
    late = two_ranks(*KEYS, "optimizer.lr=1e30", "run=b", cwd=tmp_path)
    for done, words in ((early, "timeout_minutes=0: "), (late, "The loss of step ")):
        assert [rank.returncode for rank in done] == [2, 2]
        lines = [line for rank in done for line in rank.stderr.splitlines() if words in line]
        assert len(lines) == 1
        assert lines[0].startswith(f"selfsight: {words}")
        assert not done[1].stderr


def keeps_its_group(rank: int) -> None:
    """A user's own program has made the process group."""
    port = os.environ["MASTER_PORT"]
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    with agreement.joined(CPU, 60):
        agreement.barrier()
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total == 2


def test_a_group_that_was_there_before_stays(tmp_path):
    codes, errors = exits_of_ranks(keeps_its_group, cwd=tmp_path)
    assert codes == [0, 0], errors


def mistake_before_the_others(rank: int, where: int) -> None:
    with agreement.joined(CPU, 60):
        begun = time.monotonic()

        def work() -> None:
            if rank != where:
                return time.sleep(60)
            raise UserError("data.path=x: none")

        try:
            agreement.by_all(work)
        finally:
            Path(f"waited{rank}").write_text(str(time.monotonic() - begun))


@pytest.mark.parametrize("where", [0, 1])
def test_nobody_waits_for_the_long_work_of_others_after_a_mistake(where, tmp_path):
    codes, errors = exits_of_ranks(mistake_before_the_others, where, cwd=tmp_path)
    assert codes[1 - where] == 2  # ended while it slept
    assert float((tmp_path / f"waited{where}").read_text()) < 5
    assert where == 0 or "selfsight: process 1 of 2: data.path=x: none" in errors[0]


def waits(rank: int, how: str) -> None:
    """Rank 0 works for longer than a collective would wait."""
    agreement.MARGIN = 0.0
    with agreement.joined(CPU, 1):
        if how == "by_first":
            assert agreement.by_first(lambda: time.sleep(2.5) or 7) == 7
        else:
            time.sleep(2.5 * (rank == 0))
            dist.barrier()


@pytest.mark.parametrize("how", ["by_first", "a collective"])
def test_work_of_rank_0_has_no_timeout(how, tmp_path):
    """The control is a collective, which has one."""
    codes, errors = exits_of_ranks(waits, how, cwd=tmp_path)
    assert codes[1] == (0 if how == "by_first" else 1), errors
    assert ("timeout_minutes=" in errors[1]) == (how != "by_first")


def is_stopped(rank: int) -> None:
    agreement.MARGIN = 60.0  # a GPU's collective does not end by itself
    with agreement.joined(CPU, 1.5):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        dist.all_reduce(torch.zeros(1))


def test_a_process_that_gives_no_sign_of_life_ends_the_others(tmp_path):
    codes, errors = exits_of_ranks(is_stopped, cwd=tmp_path, without=1)
    assert codes[0] == 2
    assert errors[0].startswith(
        "selfsight: timeout_minutes=0.025: process 1 of 2 has given no sign"
    )


def sends_state(rank: int) -> None:
    state = {
        "a": {"w": torch.arange(6.0).view(2, 3), "flag": torch.tensor([True, False])},
        "n": [3, (torch.tensor(2.5, dtype=torch.float64), "x")],
        "half": torch.ones(3, dtype=torch.bfloat16),
        "nhwc": torch.arange(48.0).view(1, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "none": torch.zeros(0, 4),
    }
    with agreement.joined(CPU, 60):
        got = agreement.state_by_first(lambda: state if rank == 0 else 1 / 0, CPU)
    assert repr(got) == repr(state)
    assert got["n"][1][0].dtype == torch.float64
    assert got["nhwc"].stride() == state["nhwc"].stride()


def test_the_state_of_rank_0_reaches_all_as_it_is(tmp_path):
    codes, errors = exits_of_ranks(sends_state, cwd=tmp_path)
    assert codes == [0, 0], errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("Read error [10.0.0.2]:7: Connection timed out", "the connection to another process is"),
        ("Read error [10.0.0.2]:7: No route to host", "the connection to another process is lost"),
        ("Timed out waiting 9000ms for recv", "timeout_minutes=2: another process was waited for"),
        ("Connection closed by peer [10.0.0.2]:7", None),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_network_that_is_down_is_told_by_one_process_of_each_machine(
    words, said, place, monkeypatch
):
    """Of a process that has ended, its own message says why."""
    monkeypatch.setenv("LOCAL_RANK", str(place))
    monkeypatch.setattr(agreement, "peers", lambda: SimpleNamespace(hear=lambda: None))
    error = agreement._mistake_of_another(
        RuntimeError(f"[gloo/transport/tcp/pair.cc:5] {words}"), 120
    )
    assert (error is None) == (said is None)
    if error is not None:
        assert str(error).startswith(said)
        assert "its machine or network is down. The same command continues" in str(error)
        assert error.everywhere == (place == 1)


KEYS = ["pretrain", "digits/simclr", *TINY, *heads("simclr"), "precision=fp32"]


def test_ranks_with_disks_of_their_own_continue_from_the_checkpoint_of_rank_0(tmp_path):
    """Rank 1 has no checkpoint, or an older one of the same run."""
    homes = [tmp_path / name for name in ("first", "second", "whole")]
    for home in homes:
        home.mkdir()
    done = [p.wait() for p in start_ranks([[*KEYS, "run=r", "max_steps=6"]] * 2, [homes[2]] * 2)]
    assert [p.returncode for p in done] == [0, 0], done[0].stderr
    half = [*KEYS, "run=r", "max_steps=6", "checkpoint.every_steps=1", "checkpoint.keep=9"]
    begun = [p.wait() for p in start_ranks([half] * 2, [homes[0]] * 2)]
    assert [p.returncode for p in begun] == [0, 0]
    run = homes[0] / "r"
    files = sorted((run / "checkpoints").iterdir())
    for file in files[3:]:
        file.unlink()
    (run / "encoder.safetensors").unlink()
    old = homes[1] / "r" / "checkpoints"
    old.mkdir(parents=True)
    os.link(files[0], old / files[0].name)
    done = [p.wait() for p in start_ranks([half] * 2, homes[:2])]
    assert [p.returncode for p in done] == [0, 0], done[0].stderr
    assert "Continuing after step 3 of 6" in done[0].stderr
    whole = homes[2] / "r" / "encoder.safetensors"
    assert (run / "encoder.safetensors").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(("minutes", "steps"), [(1e-6, [5, 6]), (0, [6]), (10, [6])])
def test_time_makes_checkpoints(minutes, steps, tmp_path):
    every = (f"checkpoint.every_minutes={minutes}", "checkpoint.every_epochs=0")
    done = two_ranks(*KEYS, *every, "run=r", "max_steps=6", cwd=tmp_path)
    assert [p.returncode for p in done] == [0, 0], done[0].stderr
    files = sorted((tmp_path / "r" / "checkpoints").iterdir())
    assert [int(file.name[5:13]) for file in files] == steps


class OnGpu(torch.Tensor):
    """Takes part in a computation whose end is waited for in the next step."""

    is_cuda = property(lambda _: True)


class Event:
    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def test_gpus_hear_one_step_later_and_save_once(monkeypatch, tmp_path):
    """A step a second, a checkpoint after each 10 seconds."""
    now = [0.0]
    monkeypatch.setattr(session.distributed, "rank", lambda: 0)
    monkeypatch.setattr(session.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(session.distributed, "mean", lambda x: x.as_subclass(OnGpu))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(session.time, "perf_counter", lambda: now[0])
    run = object.__new__(session.Session)
    run.config = SimpleNamespace(checkpoint=CheckpointConfig(every_minutes=10 / 60))
    run._requests, run._saved_at, saved = Requests([]), 0.0, []
    run._device, run._first_bad = torch.device("meta"), torch.tensor(-1)
    for step in range(40):
        now[0] = float(step)
        run.guard(step, torch.tensor(0.5))
        if run._requests.heard()[1]:
            saved.append(step)
            run._saved_at = now[0]
    assert saved == [11, 22, 33]


def signalled(rank: int, where: int) -> None:
    """Each signal at one rank, between two steps."""
    with agreement.joined(CPU, 60):
        loss = torch.tensor(1.0 + rank)
        for number in SIGNALS:
            caught: list[int] = []
            requests = Requests(caught)
            assert requests.tell(loss, save=False) == 1.5
            caught += [number] if rank == where else []
            assert requests.heard() == (0, False)
            requests.tell(loss, save=rank == 0)
            assert requests.heard() == (number, True)
        bad = torch.tensor(float("nan") if rank == where else 1.0)
        assert requests.tell(bad, save=False).isnan()


@pytest.mark.parametrize("where", [0, 1])
def test_all_ranks_hear_of_a_signal_in_the_step_it_came_in(where, tmp_path):
    codes, errors = exits_of_ranks(signalled, where, cwd=tmp_path)
    assert codes == [0, 0], errors


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_at_one_rank_saves_for_all(number, tmp_path):
    keys = [*KEYS, "run=r", "epochs=100000", "checkpoint.every_epochs=0"]
    ranks = start_ranks([keys] * 2, [tmp_path] * 2)
    metrics = tmp_path / "r" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert time.monotonic() < until
        assert ranks[0].poll() is None
        time.sleep(0.05)
    ranks[list(SIGNALS).index(number) % 2].send_signal(number)
    done = [rank.wait() for rank in ranks]
    assert [p.returncode for p in done] == [128 + number] * 2, done[0].stderr
    assert "everything is saved" in done[0].stderr
    steps = len(metrics.read_text().splitlines())
    assert [int(f.name[5:13]) for f in (tmp_path / "r" / "checkpoints").iterdir()] == [steps]
