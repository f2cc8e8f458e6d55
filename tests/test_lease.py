"""A folder whose file system has no locks: one process writes, also if that one was paused."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from selfsight import files, lease, locks
from selfsight.errors import UserError
from selfsight.files import write_text
from selfsight.locks import LOCK, appending, locked
from selfsight.logging.log import read_metrics
from selfsight.train.checkpoint import Checkpoints
from tests.conftest import TINY, selfsight
from tests.processes import Started, _context

SECONDS = 10.0  # in which something must have happened


def without_locks(code: int = errno.ENOLCK) -> None:
    """Take the locks of files away from this process, and let leases end early."""

    def flock(file, how):
        raise OSError(code, os.strerror(code))

    fcntl.flock = flock
    lease.BEAT, lease.STALE, lease.LOOK_EVERY = 0.05, 1.0, 0.02


@pytest.fixture
def no_locks(monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fcntl.flock)
    for name in ("BEAT", "STALE", "LOOK_EVERY"):
        monkeypatch.setattr(lease, name, getattr(lease, name))
    without_locks()


class Holder:
    """Another process, which holds a folder and writes into it."""

    def __init__(self, folder: Path, work, *arguments) -> None:
        self._process = _context.Process(target=_hold, args=(folder, work, arguments))
        self._process.start()
        self.folder = folder
        self.wait_for("ready")

    def wait_for(self, name: str) -> None:
        until(lambda: (self.folder.parent / name).exists())

    def send(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def wait_for_pause(self) -> None:
        until(lambda: state_of(self._process.pid) == "T")

    def end(self) -> str:
        """What it says at its end."""
        self._process.join(SECONDS)
        assert not self._process.is_alive()
        return (self.folder.parent / "said").read_text()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def until(condition) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def _hold(folder: Path, work, arguments) -> None:
    without_locks()
    try:
        with locked(folder):
            (folder.parent / "ready").touch()
            work(folder, *arguments)
            said = "done"
    except UserError as error:
        said = str(error)
    (folder.parent / "said").write_text(said)


def wait_long(folder: Path, machine: str | None = None) -> None:
    time.sleep(30)


def write_on_and_on(folder: Path) -> None:
    for n in range(100_000):
        write_text(folder / "file", f"other {n}")
        time.sleep(0.001)


def pause_before_it_renames(folder: Path, what: str, fenced: bool) -> None:
    """Stop in the last moment before a file gets its name: after every check."""
    real = os.replace

    def replace(source, target):
        os.kill(os.getpid(), signal.SIGSTOP)
        real(source, target)

    if not fenced:
        files.where_to_begin = lambda path: path.parent
    os.replace = replace
    if what == "text":
        write_text(folder / "file", "other")
    else:
        Checkpoints(folder / "checkpoints").save(1, {"a": 1})


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def written(folder: Path) -> set[Path]:
    """The files that have their names."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path for path in files if "lease" not in str(path.relative_to(folder))}


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_folder_without_locks_is_held_by_a_lease(folder, no_locks, code):
    without_locks(code)
    with locked(folder):
        assert names(folder) == {LOCK, f"{LOCK}.lease"}
        with pytest.raises(UserError, match=f"another process is writing .* process {os.getpid()}"):
            locked(folder).__enter__()
        assert names(folder) == {LOCK, f"{LOCK}.lease"}  # the one refused has left nothing
        write_text(folder / "file", "mine")
    assert names(folder) == {LOCK, "file"}
    with locked(folder):
        pass


def test_an_error_of_the_disk_is_no_other_process(folder, no_locks):
    without_locks(errno.EIO)
    with pytest.raises(UserError, match=r"cannot be locked: Input/output error"), locked(folder):
        pass


def test_locks_that_work_need_no_lease(folder):
    with locked(folder):
        assert names(folder) == {LOCK}


def test_a_lease_of_a_process_that_was_killed_is_taken_over_at_once(folder, no_locks, monkeypatch):
    other = Holder(folder, wait_long)
    other.send(signal.SIGKILL)
    monkeypatch.setattr(lease, "STALE", 600.0)
    with locked(folder):
        assert len(os.listdir(folder / f"{LOCK}.lease")) == 1


def test_a_lease_of_another_machine_is_waited_for(folder, no_locks, capfd):
    """Its processes cannot be looked at: a number that this machine knows may be of another one."""
    place = folder / f"{LOCK}.lease" / "token"
    place.mkdir(parents=True)
    about = {"host": "far", "machine": "another", "pid": 2**22 + 1, "started": "1"}
    (place / "holder").write_text(json.dumps(about) + "\n1")
    began = time.monotonic()
    with locked(folder):
        assert time.monotonic() - began >= lease.STALE
    assert "process 4194305 on far was writing in it; it is taken over" in capfd.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\n1", b"{}\n1", b"5\n\xff"])
def test_a_lease_that_does_not_say_who_holds_it_is_waited_for(
    folder, no_locks, monkeypatch, content
):
    """None: its file is missing, as after a loss of power."""
    monkeypatch.setattr(lease, "STALE", 0.2)
    place = folder / f"{LOCK}.lease" / "token"
    place.mkdir(parents=True)
    if content is not None:
        (place / "holder").write_bytes(content)
    began = time.monotonic()
    with locked(folder):
        assert time.monotonic() - began >= lease.STALE


def test_a_process_of_another_user_lives_though_it_is_hidden(folder, no_locks, monkeypatch):
    """A /proc mounted with hidepid has no folder for it. Control: no process has the number."""
    mine = {"machine": lease.machine(), "pid": os.getpid(), "started": "1"}
    assert lease._has_ended(mine)  # the number was given again
    monkeypatch.setattr(lease, "process", lambda pid: {"pid": pid, "started": None})

    def kill(pid, number):
        assert number == 0
        raise OSError(errno.EPERM if pid == os.getpid() else errno.ESRCH, "")

    monkeypatch.setattr(os, "kill", kill)
    assert not lease._has_ended(mine)
    assert lease._has_ended({**mine, "pid": os.getpid() + 1})


def test_the_end_of_a_lease_on_a_lost_disk_hides_no_error(folder, no_locks, monkeypatch):
    def lost(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    @contextlib.contextmanager
    def losing():
        with locked(folder):
            monkeypatch.setattr(os, "rename", lost)
            yield

    with pytest.raises(UserError, match="the reason"), losing():
        raise UserError("the reason")


@pytest.mark.parametrize("wait", [False, True])
def test_signs_of_life_from_another_machine(folder, no_locks, monkeypatch, wait):
    """Who waits gets the folder when the other ends; who does not is refused."""
    monkeypatch.setattr(lease, "machine", lambda: f"{threading.get_ident()}")
    ends, held = threading.Event(), threading.Event()

    def hold():
        with locked(folder):
            held.set()
            ends.wait(SECONDS)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(SECONDS)
    if wait:
        threading.Timer(2 * lease.STALE, ends.set).start()
    began = time.monotonic()
    refused = contextlib.nullcontext() if wait else pytest.raises(UserError, match="wait for it")
    with refused, locked(folder, wait=wait):
        assert ends.is_set()
    assert (time.monotonic() - began >= 1.9 * lease.STALE) == wait
    ends.set()
    other.join(SECONDS)
    assert names(folder) == {LOCK}


@pytest.mark.parametrize("turn", range(2))
def test_who_was_paused_at_any_moment_writes_nothing_more(folder, no_locks, turn):
    other = Holder(folder, write_on_and_on)
    other.wait_for("run/file")
    time.sleep(0.01 + 0.0017 * turn)
    other.send(signal.SIGSTOP)
    with locked(folder):
        write_text(folder / "file", "mine")
        other.send(signal.SIGCONT)
        said = other.end()
        assert f"'{folder}': another process has taken over this folder" in said
        assert len(said.splitlines()) == 1
        assert (folder / "file").read_text() == "mine"
    assert names(folder) == {LOCK, "file"}


@pytest.mark.parametrize(
    ("what", "fenced"), [("text", True), ("checkpoint", True), ("checkpoint", False)]
)
def test_the_fence_holds_in_the_last_moment(folder, no_locks, what, fenced):
    """Without it (the control), the file that was about to get its name gets it."""
    other = Holder(folder, pause_before_it_renames, what, fenced)
    other.wait_for_pause()
    with locked(folder):
        before = {path for path in written(folder) if path.suffix != ".tmp"}
        other.send(signal.SIGCONT)
        said = other.end()
        assert ("has taken over" in said) == fenced
        assert (written(folder) == before) == fenced


def enter(folder: Path, turns: int) -> None:
    """Hold the folder again and again; nobody else is in it meanwhile."""
    without_locks()
    for _ in range(turns):
        with locked(folder, wait=True):
            inside = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)
            time.sleep(0.002)
            os.close(inside)
            os.unlink(folder / "inside")


def test_many_processes_that_want_one_stale_lease_hold_it_one_at_a_time(folder, no_locks):
    other = Holder(folder, wait_long)
    other.send(signal.SIGKILL)
    many = [_context.Process(target=enter, args=(folder, 10)) for _ in range(5)]
    for process in many:
        process.start()
    for process in many:
        process.join(3 * SECONDS)
    assert [process.exitcode for process in many] == [0] * 5
    assert names(folder) == {LOCK}


def test_lines_are_added_where_there_are_no_locks(folder, no_locks):
    with appending(folder / "bad.txt") as file:
        file.write("a\n")
    assert (folder / "bad.txt").read_text() == "a\n"


MOUNT = "36 35 {number} / /mnt rw,noatime{more} shared:1 - {kind} {source} rw{options}\n"


@pytest.mark.parametrize(
    ("kind", "options", "alone"),
    [
        ("nfs4", ",local_lock=none", False),
        ("nfs", ",nolock,local_lock=all", True),
        ("lustre", ",localflock", True),
        ("lustre", ",flock", False),
        ("fuse.sshfs", "", True),
        ("fuse", "", True),
        ("fuseblk", "", False),
        ("beegfs", ",cfgFile=/etc/beegfs.conf", True),
        ("ext4", "", False),
    ],
)
@pytest.mark.parametrize("source", ["server:/", ""])
def test_mounts_whose_locks_other_machines_do_not_see(
    tmp_path, monkeypatch, kind, options, alone, source
):
    device = os.stat(tmp_path).st_dev
    about = {"number": f"{os.major(device)}:{os.minor(device)}", "more": "", "kind": kind}
    (tmp_path / "mounts").write_text(MOUNT.format(options=options, source=source, **about))
    monkeypatch.setattr(locks, "MOUNTS", str(tmp_path / "mounts"))
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        assert (tmp_path / "run" / f"{LOCK}.lease").is_dir() == alone


def test_a_training_that_was_paused_gives_way_to_the_next(tmp_path):
    """The same command on what may be another machine ends the run; the first ends in one line."""
    command = ["pretrain", "digits/simclr", *TINY, "max_steps=20", "checkpoint.every_steps=1"]
    selfsight(*command, "--run", "whole", cwd=tmp_path)
    first = Started(*command, "--run", "run", cwd=tmp_path, prepare=without_locks)
    until(lambda: len(read_metrics(tmp_path / "run" / "metrics.jsonl")) > 3)
    first.send_signal(signal.SIGSTOP)
    assert first.poll() is None
    then = Started(*command, "--run", "run", cwd=tmp_path, prepare=without_locks).wait()
    assert then.returncode == 0, then.stderr
    assert "Continuing after step" in then.stderr
    left = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    first.send_signal(signal.SIGCONT)
    ended = first.wait()
    assert ended.returncode == 2
    assert "another process has taken over this folder" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert left == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    whole, other = (tmp_path / name / "encoder.safetensors" for name in ("whole", "run"))
    assert whole.read_bytes() == other.read_bytes()
