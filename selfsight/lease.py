"""A lock of a folder for file systems whose locks fail, or hold on one machine only.

Who holds the folder shows in a folder NAME.lease beside what is written:

    NAME.lease/TOKEN/holder     who holds it, and a number that grows every BEAT seconds
    NAME.lease/TOKEN/.*.tmp     files that the holder is writing

TOKEN is random. It is all made under another name and then renamed to NAME.lease, which succeeds
only while no other lease is there. If the number stays the same for STALE seconds, the holder has
ended or stands still, and another process takes over: it renames NAME.lease/TOKEN away.

The fence: a holder writes its files inside NAME.lease/TOKEN and renames them from there to their
places. Once another process has taken over, that path is gone, so a holder that was paused at any
moment, and goes on, puts no file in place any more. No clock of two machines is compared.
"""

import contextlib
import errno
import json
import os
import platform
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfsight.errors import UserError

BEAT = 2.0  # seconds between two signs of life
STALE = 60.0  # seconds without one, after which another process may take over
LOOK_EVERY = 0.25  # seconds between two looks at a lease that another process holds
_HOLDER = "holder"
_DIGITS = 16  # of the number that grows, at the end of the file


class Lost(UserError):
    """Another process has taken over the folder."""


class Lease:
    """The lease of a folder, as the process that holds it sees it, or one that works beside it.

    Attributes:
        inside: where its holder writes files before they get their names.
    """

    def __init__(self, place: Path, token: str) -> None:
        self._place, self.inside = place, place / token

    def check(self) -> None:
        """Raises: Lost if another process has taken over."""
        try:
            # opened, since a network's file system then asks the server
            with (self.inside / _HOLDER).open("rb"):
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        raise Lost(
            f"'{self._place.parent}': another process has taken over this folder, since nothing "
            f"was heard from this one for {STALE:g} seconds: it was paused, or its disk was away. "
            f"This process ends and writes nothing more"
        )


@contextlib.contextmanager
def held(place: Path, wait: bool = False) -> Iterator[Lease]:
    """Hold the lease NAME.lease at this place.

    Args:
        wait: until another process that holds it ends, instead of raising.
    Raises: UserError if another process holds it, once that has shown a sign of life.
    """
    token = secrets.token_hex(16)
    new = place.with_name(f"{place.name}-{token}")
    (new / token).mkdir(parents=True)
    try:
        about = {"host": platform.node(), "machine": machine(), **process(os.getpid())}
        with (new / token / _HOLDER).open("wb", buffering=0) as file:
            file.write(json.dumps(about).encode() + b"\n")
            beat = _Beat(file.fileno(), file.tell())
            _wait_for(place, new, wait)
            lease = Lease(place, token)
            with beat.going_on():
                try:
                    yield lease
                finally:
                    # another lease is in it by now, or the disk is away: no error hides an earlier
                    with contextlib.suppress(OSError):
                        _take_away(lease.inside, new)
                        place.rmdir()
    finally:
        shutil.rmtree(new, ignore_errors=True)


def seen(place: Path) -> Lease | None:
    """The lease that a process holds at this place; None if none does."""
    token = _token(place)
    return None if token is None else Lease(place, token)


class _Beat:
    """The number at the end of a holder's file, which a thread makes grow. It is written through
    an open file: whoever has taken over is not touched.

    Args:
        start: its place in the file, in bytes.
    """

    def __init__(self, descriptor: int, start: int) -> None:
        self._descriptor, self._start, self._count = descriptor, start, 0
        self._end = threading.Event()
        self._write()

    def _write(self) -> None:
        self._count += 1
        os.pwrite(self._descriptor, f"{self._count:0{_DIGITS}d}".encode(), self._start)
        os.fsync(self._descriptor)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        thread = threading.Thread(target=self._go_on, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def _go_on(self) -> None:
        while not self._end.wait(BEAT):
            with contextlib.suppress(OSError):  # its disk is away: the next one may succeed
                self._write()


def _wait_for(place: Path, new: Path, wait: bool) -> None:
    """Rename `new` to `place`, once no other process holds that. Raises: UserError."""
    before, since, told = None, time.monotonic(), False
    while not _renamed(new, place):
        now = time.monotonic()  # before the look: this process may be paused after it
        found = _look(place)
        if found is None:  # it has just ended
            with contextlib.suppress(OSError):
                place.rmdir()
            time.sleep(LOOK_EVERY / 10)
            continue
        token, about, beat = found
        if before is not None and before[0] == token and before[1] != beat and not wait:
            raise UserError(
                f"'{place.parent}': another process is writing this run, {_named(about)}; wait for "
                f"it or stop it"
            )
        if before != (token, beat):
            before, since = (token, beat), now
        if _has_ended(about) or now - since >= STALE:
            _take_away(place / token, new.with_name(f"{new.name}-old"))
            continue
        if now - since > 2 * BEAT and not told:
            told = True
            print(
                f"'{place.parent}': {_named(about)} was writing in it; it is taken over if nothing "
                f"is heard from that process for {STALE:g} seconds",
                file=sys.stderr,
            )
        time.sleep(LOOK_EVERY)


def _renamed(new: Path, place: Path) -> bool:
    """Rename a folder, unless another one that is not empty has the name."""
    try:
        os.rename(new, place)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _take_away(inside: Path, aside: Path) -> None:
    """End the lease of exactly this token, if it is still there, and remove its files."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(inside, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _token(place: Path) -> str | None:
    try:
        return next(iter(os.listdir(place)), None)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _look(place: Path) -> tuple[str, dict[str, Any], str] | None:
    """Token, description of the process, and its number; None if nobody holds the lease."""
    token = _token(place)
    if token is None:
        return None
    try:
        first, _, beat = (place / token / _HOLDER).read_text(errors="replace").partition("\n")
    except FileNotFoundError:  # it has just ended, or lost its file
        return (token, {}, "") if _token(place) == token else None
    try:
        about = json.loads(first)
    except ValueError:  # damaged: taken over if it stays as it is
        return token, {}, f"{first} {beat}"
    return token, about if isinstance(about, dict) else {}, beat


def _named(about: dict[str, Any]) -> str:
    return f"process {about.get('pid', '?')} on {about.get('host', '?')}"


def _has_ended(about: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    pid = about.get("pid")
    if about.get("machine") != machine() or not isinstance(pid, int):
        return False
    return process(pid) != {key: about.get(key) for key in ("pid", "started")} and not _hidden(pid)


def _hidden(pid: int) -> bool:
    """Whether another user's process has this number: a /proc that was mounted with hidepid does
    not show it."""
    try:
        os.kill(pid, 0)  # sends nothing
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):  # the latter: no number of a process
        pass
    return False


def machine() -> str:
    """What differs between two machines, two starts of one, and two containers: the process numbers
    of two places with the same name are of the same processes. "" where this is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"? {secrets.token_hex(4)}"  # equal to none


def process(pid: int) -> dict[str, Any]:
    """Number and time of start of a process, in ticks since the machine started; another process
    may get its number later. No start: it has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        words = []
    return {"pid": pid, "started": words[19] if words and words[0] not in "ZX" else None}
