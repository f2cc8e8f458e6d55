"""After a signal at any process, training finishes its step, saves a checkpoint and ends."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from selfsight.processes import SIGNALS, Stopped


class Interrupted(Exception):
    """A signal ended the run after a step; a checkpoint is saved."""

    everywhere = True  # all processes end with it

    def __init__(self, signal_number: int, step: int, steps: int) -> None:
        super().__init__(f"Stopped after step {step} of {steps}; everything is saved.")
        self.signal_number = signal_number


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """The list receives the numbers of SIGNALS that come; a second Ctrl-C raises Stopped. A
    signal that is ignored, as SIGHUP under nohup, stays so."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may handle signals in Python
        return

    def note(number: int, _frame: Any) -> None:
        if number == signal.SIGINT and number in caught:
            raise Stopped(number)
        caught.append(number)

    used = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in used}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
