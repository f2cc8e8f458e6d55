"""A command that starts itself in several processes, where a file asks for several devices."""

import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from subprocess import Popen, TimeoutExpired
from typing import IO

import typer

COMMAND = [sys.executable, "-P", "-m", "selfsight"]  # -P: the current folder holds no modules
SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
GRACE = 30  # seconds for the others to end, once one has failed


def share_out(count: int, device: str) -> None:
    """Return in each of `count` worker processes. The first call starts them, waits, and exits with
    their exit code. With fewer GPUs, fewer processes share the same whole batch."""
    if count == 1 or "WORLD_SIZE" in os.environ:
        return
    if device != "cpu":
        import torch

        gpus = torch.cuda.device_count()
        there = max(n for n in range(1, max(1, min(gpus, count)) + 1) if count % n == 0)
        if there < count:
            said = f"devices={count}: this machine has {gpus} GPUs"
            print(f"{said}; processes: {there}, with the same whole batch", file=sys.stderr)
            count = there
    if count > 1:
        raise typer.Exit(_launch(count))


def _launch(count: int) -> int:
    """The exit code of the first that failed, or 128 + the signal that ended all, or 0.

    What the others write to stderr the first one writes too, unless another alone has failed.
    """
    with ExitStack() as stack:
        unheard = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count - 1)]
        ranks: list[Popen] = []
        caught = stack.enter_context(_passed_on(ranks))
        ranks += _start([None, *unheard])
        first = _first_failure(ranks)
        code = ranks[first].returncode
        if caught:
            return 128 + caught[0]
        if first > 0 and not code == ranks[0].returncode == 2:
            unheard[first - 1].seek(0)
            sys.stderr.write(unheard[first - 1].read())
    return code if code >= 0 else 128 - code


def _start(errors: list[IO[str] | None]) -> Iterator[Popen]:
    """Start one process for each output file in the list, with the variables that torchrun sets.
    Each has a session of its own, so that Ctrl-C reaches it through this process only."""
    count = len(errors)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": free.getsockname()[1]}
    shared |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))}
    for n, file in enumerate(errors):
        mine = {key: str(value) for key, value in {**shared, "RANK": n, "LOCAL_RANK": n}.items()}
        env = {**threads, **os.environ, **mine}
        yield Popen([*COMMAND, *sys.argv[1:]], env=env, stderr=file, start_new_session=True)


def _first_failure(ranks: list[Popen]) -> int:
    """Wait until all have ended. Returns: the index of the first that failed; 0 if none did."""
    while not (failed := [n for n, rank in enumerate(ranks) if rank.poll()]):
        if all(rank.returncode == 0 for rank in ranks):
            return 0
        time.sleep(0.1)
    for rank in ranks:
        try:
            rank.wait(GRACE)
        except TimeoutExpired:
            rank.kill()
            rank.wait()
    return failed[0]


@contextmanager
def _passed_on(ranks: list[Popen]) -> Iterator[list[int]]:
    """Collect signals in a list and pass them on: the first lets the processes save and end."""
    caught: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        for rank in ranks:
            rank.kill() if caught else rank.terminate()
        caught.append(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
