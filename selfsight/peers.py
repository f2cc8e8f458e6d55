"""What the processes of a run tell one another beside the collectives, through the store in which
they met: that they are alive, what they agree on, and that one of them has made a mistake.

A collective ends a process that waits in it for longer than its timeout. Here a process waits for
as long as the others are alive: reading an index, or a check on rank 0, may take hours.
"""

import contextlib
import itertools
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from selfsight.errors import UserError, printable

DOWN = (
    "it is stopped, or its machine or network is down. The same command continues after the last "
    "checkpoint"
)
EVERY = 0.5  # seconds between two reports that a process is alive
PATIENCE = 1.0  # seconds that rank 0 waits for the others after one has failed
GRACE = 3.0  # seconds in which a process may end by itself after a mistake
LONGEST_PAUSE = 0.05  # seconds between two looks at the store
# keys of the store
MISTAKE, HEARD, OVER, LEFT = "mistake", "heard", "over", "left"
_groups = itertools.count()  # all processes make their groups in the same order


class Peers:
    """The processes of one process group.

    Args:
        store: in which the group met.
        seconds: without a sign of life, after which a process counts as lost.
        watch: report from a thread that this process is alive, and end it GRACE seconds after a
            mistake of any process, or the loss of one: it may wait in a collective. Without,
            `meet` waits for at most `seconds`.
    """

    def __init__(
        self, store: dist.Store, rank: int, count: int, seconds: float, watch: bool
    ) -> None:
        # With a connection of its own: a call of another thread may wait in that of the store.
        self._store = dist.PrefixStore(f"selfsight/{next(_groups)}", store.clone())
        self._rank, self._count, self._seconds, self._watches = rank, count, seconds, watch
        self._turns = itertools.count()
        self._mistake: tuple[str, int] | None = None  # in words, and the rank that prints it
        self._ends_itself, self._left = False, False
        self._failed: str | None = None  # a mistake of this process that it has not printed
        self._closed = threading.Event()
        self._rounds = 0  # reports that the store has taken
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        if watch:
            self._thread.start()
            threading.Thread(target=self._guard, name="peers' store", daemon=True).start()

    def meet(
        self, mine: Any, decide: Callable[[dict[int, Any]], Any], failed: str | None = None
    ) -> Any:
        """Wait for all processes; then what rank 0 decides from what they bring.

        Args:
            mine: any object that can be pickled.
            decide: called on rank 0 with what each rank has brought; if one has failed, with what
                was brought within PATIENCE seconds.
            failed: why this process cannot go on.
        Raises: UserError for the mistake of another process that does not come.
        """
        turn, self._failed = next(self._turns), failed
        fails, verdict = f"{turn}/fails", f"{turn}/verdict"
        if failed is not None:
            self._store.set(fails, b"1")
        if self._rank > 0:
            self._store.set(f"{turn}/{self._rank}", pickle.dumps(mine))
            if not self._wait([verdict], lambda: failed is not None):
                heard = self.tell(failed)  # rank 0 is at work, and ends when it hears of it
                raise self.mistake() if heard else UserError(failed)
            return pickle.loads(self._store.get(verdict))
        keys = {rank: f"{turn}/{rank}" for rank in range(1, self._count)}
        if not self._wait(list(keys.values()), lambda: self._store.check([fails])):
            keys = {rank: key for rank, key in keys.items() if self._store.check([key])}
        found = {rank: pickle.loads(self._store.get(key)) for rank, key in keys.items()}
        decided = decide({0: mine, **found})
        self._store.set(verdict, pickle.dumps(decided))
        for old in (*keys.values(), f"{turn - 1}/verdict"):  # nobody reads them any more
            self._store.delete_key(old)
        return decided

    def _wait(self, keys: list[str], has_failed: Callable[[], bool]) -> bool:
        """Wait until the store has these keys. Returns: False if it lacks one of them PATIENCE
        seconds after a process has failed."""
        began, failed, pause = time.monotonic(), None, 0.0005
        while not self._store.check(keys):
            mistake, now = self.mistake(), time.monotonic()
            if mistake:
                raise mistake
            failed = now if failed is None and has_failed() else failed
            if failed is not None and now - failed > PATIENCE:
                return False
            if not self._watches and now - began > self._seconds:
                raise UserError(self._lost("another process"))
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return True

    def mistake(self) -> UserError | None:
        """The mistake that ends all processes, if this process has heard of one. One process of
        them prints it."""
        if self._mistake is None:
            return None
        words, speaker = self._mistake
        if self._failed and words.endswith(f": {self._failed}"):  # all have made the same one
            words = self._failed
        error = UserError(words)
        error.everywhere = speaker != self._rank
        return error

    def hear(self) -> UserError | None:
        """As `mistake`, after a moment in which a process that has ended may have told of one."""
        self._closed.wait(0 if self._mistake or not self._watches else 4 * EVERY)
        return self.mistake()

    def tell(self, words: str) -> bool:
        """End all processes with this mistake, which rank 0 prints. Returns: whether all have heard
        of it, within GRACE seconds."""
        self._ends_itself, self._failed = True, words
        try:
            self._publish(words, 0)
            return self._watches and self._all_in(HEARD, self._count)
        except RuntimeError:  # rank 0, which may have the store, is gone
            return False

    def _all_in(self, key: str, count: int) -> bool:
        """Whether this many processes have added themselves, within GRACE seconds."""
        end = time.monotonic() + GRACE
        while self._store.add(key, 0) < count:
            if time.monotonic() > end:
                return False
            time.sleep(LONGEST_PAUSE)
        return True

    def _publish(self, words: str, speaker: int) -> None:
        """Tell of a mistake, if no other process was faster."""
        self._take(self._store.compare_set(MISTAKE, "", f"{speaker} {words}"))

    def _take(self, line: bytes) -> None:
        speaker, _, words = line.decode().partition(" ")
        self._mistake = words, int(speaker)

    def close(self) -> None:
        """End the reports. Rank 0, which may have the store, leaves last."""
        self._closed.set()
        if self._watches:  # in a thread: the store may not answer
            last = threading.Thread(target=self._leave_together, daemon=True)
            last.start()
            last.join(2 * GRACE)

    def _leave_together(self) -> None:
        self._thread.join()
        with contextlib.suppress(RuntimeError):  # rank 0 is gone
            if self._rank > 0:
                self._leave()
                return
            self._store.set(OVER, b"1")
            self._all_in(LEFT, self._count - 1)

    def _leave(self) -> None:
        if not self._left:
            self._left = True
            self._store.add(LEFT, 1)

    def _watch(self) -> None:
        """The thread's work: report, and listen."""
        reports, looks = itertools.count(), itertools.count(1)
        look_every = max(1, round(self._seconds / 20 / EVERY))
        seen: dict[int, tuple[bytes, float]] = {}
        try:
            while not self._closed.wait(EVERY):
                self._store.set(f"alive/{self._rank}", str(next(reports)))
                if next(looks) % look_every == 0:
                    self._look_for_lost(seen)
                if self._store.check([MISTAKE]):
                    self._take(self._store.get(MISTAKE))
                    self._store.add(HEARD, 1)
                    return self._end()
                if self._store.check([OVER]):
                    return self._leave()
                self._rounds += 1
        except RuntimeError:  # all errors of a store are of this kind
            if not self._closed.is_set():
                self._end_without_store(
                    f"process 0 of {self._count} has ended, or cannot be reached"
                )

    def _guard(self) -> None:
        """The work of a second thread: end this process if the store is silent, for which the
        first one waits without a limit: the process that has it is stopped, or its machine is
        down. It counts its own turns, so that no time counts in which this process was stopped."""
        before, silent = 0, 0
        while not self._closed.wait(EVERY):
            silent = silent + 1 if self._rounds == before and self._thread.is_alive() else 0
            before = self._rounds
            if silent * EVERY > self._seconds:
                if self._failed and not self._closed.wait(GRACE):
                    self._exit(self._failed, self._rank)  # it waits to tell the others of it
                return self._end_without_store(self._lost("process 0, or the launcher,"))

    def _end_without_store(self, words: str) -> None:
        """End this process; the first one that is left on each machine says why."""
        local = os.environ.get("LOCAL_RANK", "0")
        speaker = self._rank if local == "0" or self._rank == 1 else -1
        self._mistake = self._mistake or (words, speaker)
        self._end()

    def _look_for_lost(self, seen: dict[int, tuple[bytes, float]]) -> None:
        """Tell of a process that is silent. Rank 0 looks at all, the others look at rank 0.

        Args:
            seen: the last report of each rank, and when it came.
        """
        now = time.monotonic()
        for rank in range(1, self._count) if self._rank == 0 else (0,):
            key = f"alive/{rank}"
            report = self._store.get(key) if self._store.check([key]) else b""
            before, since = seen.get(rank, (None, now))
            seen[rank] = (report, since if report == before else now)
            if now - seen[rank][1] > self._seconds:
                words = self._lost(f"process {rank} of {self._count}")
                self._publish(words, 1 if rank == 0 else 0)

    def _lost(self, process: str) -> str:
        return (
            f"timeout_minutes={self._seconds / 60:g}: {process} has given no sign of life for as "
            f"long: {DOWN}"
        )

    def _end(self) -> None:
        """End this process, if it does not end by itself."""
        if self._closed.wait(GRACE) or self._ends_itself or self._mistake is None:
            return
        self._exit(*self._mistake)

    def _exit(self, words: str, speaker: int) -> None:
        if speaker == self._rank:
            print(f"selfsight: {printable(words)}", file=sys.stderr, flush=True)
        os._exit(2)
