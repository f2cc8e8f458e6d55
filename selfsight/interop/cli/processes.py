"""A command that starts itself in several processes, where a file asks for several devices."""

import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from selfsight.cli.said import say
from selfsight.processes import SIGNALS

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

COMMAND = [sys.executable, "-P", "-m", "selfsight"]  # -P: the current folder holds no modules
SAVING = 3600  # seconds to save after a signal; torch's 30 are few for a large state
CHECK_EVERY = 1.0  # seconds: after a mistake of all, torch should find that all have ended
ENDED = (-signal.SIGTERM, 128 + signal.SIGTERM)  # by torch, after another has failed


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
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVING))
    heeded = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]  # as under nohup
    # torch replaces ${...} in arguments
    words = [word.replace("$", "$$") for word in (*COMMAND[1:], *sys.argv[1:])]
    with tempfile.TemporaryDirectory(prefix="selfsight-") as folder, _silent():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id="selfsight",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",  # a free port
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=CHECK_EVERY,
            logs_specs=DefaultLogsSpecs(folder, dict.fromkeys(range(1, count), Std.ERR)),
            signals_to_handle=",".join(signal.Signals(n).name for n in heeded),
        )
        try:
            elastic_launch(config, COMMAND[0])(*words)
        except SignalException as stopped:
            return 128 + stopped.sigval
        except ChildFailedError as error:
            return _report_of(error, Path(folder))
    return 0


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Torch's launcher does not log what it does with which process."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _report_of(error: "ChildFailedError", folder: Path) -> int:
    """The exit code of the process that failed first, whose messages are printed if they were not.

    One that says that another has ended exits with 2, as after a mistake of all; so it is the first
    only if none has another code.
    """
    codes = {rank: failure.exitcode for rank, failure in error.failures.items()}  # in that order
    own = [rank for rank, code in codes.items() if code not in (2, *ENDED)]
    first = own[0] if own else error.get_first_failure()[0]
    if first > 0 and not codes[first] == codes.get(0) == 2:
        for file in folder.glob(f"*/*/{first}/stderr.log"):
            sys.stderr.write(file.read_text(errors="replace"))
    if codes[first] >= 0:
        return codes[first]
    name = signal.Signals(-codes[first]).name
    say(f"process {first} was ended by {name}, so all have ended; the same command continues")
    return 128 - codes[first]
