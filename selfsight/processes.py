"""How a process ends that nobody waits for: by a signal, or with the process that started it."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Of a person, a scheduler, or a terminal that is closed; Windows lacks some.
_NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
GRACE = 5.0  # seconds that a call of a C library may go on after a signal
AGAIN = 1.0  # seconds: torchrun sends a second signal at once, a person who insists does not
CHECK_EVERY = 1.0  # seconds between two looks at the parent process
PARENT = "SELFSIGHT_PARENT"  # the number of the process that starts another one, in its environment
SAVING = 7.0  # seconds for a checkpoint after the parent process is gone


class Stopped(BaseException):
    """One of SIGNALS, such as Ctrl-C, raised in the main thread wherever it is.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def stopped_by_signals(say: Callable[[int], None]) -> Iterator[None]:
    """SIGNALS raise Stopped; the second one ends the process at once.

    Ends the process as well if the main thread does not react, since a C library keeps it (as when
    it waits for other processes), or if the exception is lost in a destructor. A handler that
    someone else sets meanwhile decides alone.
    Args:
        say: prints why the process ends, where Stopped cannot be raised.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals in Python
        return
    caught: dict[int, float] = {}

    def end(number: int) -> None:
        say(number)
        sys.stderr.flush()
        os._exit(128 + number)

    def stop(number: int, _frame: Any) -> None:
        now = time.monotonic()
        if not caught:
            caught[number] = now
            raise Stopped(number)
        if now - min(caught.values()) > AGAIN:
            end(number)

    def lost(problem: Any) -> None:
        if isinstance(problem.exc_value, Stopped):
            end(problem.exc_value.number)
        hook(problem)

    used = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]  # as under nohup
    before = {number: signal.signal(number, stop) for number in used}
    hook, sys.unraisablehook = sys.unraisablehook, lost
    try:
        with _not_reacting(lambda n: signal.getsignal(n) is stop and not caught, end):
            yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            # Python's own handler would print a traceback while the process ends.
            is_pythons = handler is signal.default_int_handler
            signal.signal(number, signal.SIG_DFL if is_pythons else handler)


@contextlib.contextmanager
def _not_reacting(is_waiting: Callable[[int], bool], end: Callable[[int], None]) -> Iterator[None]:
    """Call `end` GRACE seconds after a signal whose handler could not run until then. Python runs
    handlers in the main thread, between two calls, but wakes this thread at once."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        while data := os.read(reader, 1):
            if is_waiting(data[0]):
                time.sleep(GRACE)
                if is_waiting(data[0]):
                    end(data[0])
        os.close(reader)

    threading.Thread(target=watch, name="signals", daemon=True).start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


def end_with_parent() -> None:
    """Let this process end within 10 s if the process that started it is gone, also if that was
    killed and could not pass it on, and also if that was before this call: SIGTERM, so that it can
    save, and after SAVING the end."""
    parent = os.getppid()
    known = os.environ.pop(PARENT, str(parent))  # not for the processes that this one starts
    if known != str(parent) or _is_orphan_of_torchrun(parent):
        parent = -1

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(CHECK_EVERY)
        with contextlib.suppress(OSError):
            line = "selfsight: the process that started this one is gone, so this one ends, too\n"
            os.write(2, line.encode())
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SAVING)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _is_orphan_of_torchrun(parent: int) -> bool:
    """Whether torchrun started this process, and its parent is now another one: that of torchrun is
    a program in Python, and the system's processes that take over orphans are none.

    torchrun begins a session for each process; of another session, the parent is a program between
    the two, such as a shell.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.getsid(0) != os.getpid():
        return False
    try:
        words = Path(f"/proc/{parent}/cmdline").read_bytes().lower()
    except OSError:
        return False
    return b"python" not in words and b"torch" not in words
