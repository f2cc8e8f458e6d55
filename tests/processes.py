"""Commands as processes of their own, forked from one that has imported torch and timm: that spares
each of them ten seconds of a core. tests/test_docs.py starts `python -m selfsight` itself, and
tests/test_distributed.py has torchrun start it."""

import importlib
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import selfsight
from selfsight.processes import PARENT

MAIN = str(Path(selfsight.__file__).parent / "__main__.py")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "selfsight.cli",
        "selfsight.evaluate.protocols",
        "selfsight.grid.cell",
        "selfsight.interop.up",
        "timm",
        "torch._dynamo",
        __name__,
    ]
)


def environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200"}


def _ensure_server() -> None:
    """Start it, once, in the environment of the commands: libraries read it as they load."""
    before = dict(os.environ)
    os.environ.update(environment())
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def in_ranks(worker: Callable[..., None], *arguments: Any, world: int = 2) -> None:
    """Call worker(rank, world, *arguments) in each process. Raises: what any of them raises."""
    _ensure_server()
    mp.start_processes(worker, (world, *arguments), world, start_method="forkserver")


def elastic(restarts: int, *arguments: str, cwd: Path) -> multiprocessing.Process:
    """A process of torchrun's agent that has started a command in two processes, which it starts
    again, both, when one of them fails. Its exit code is 0 if they succeed in the end."""
    _ensure_server()
    process = _context.Process(target=_agent, args=(restarts, arguments, str(cwd)))
    process.start()
    return process


def _agent(restarts: int, arguments: tuple[str, ...], cwd: str) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        start_method="fork",  # of a process that has imported torch and used no thread of it
    )
    output = [f"{cwd}/{name}" for name in ("stdout", "stderr")]
    elastic_launch(config, _rank)(arguments, cwd, output)


def _rank(arguments: tuple[str, ...], cwd: str, files: list[str]) -> None:
    _child(arguments, cwd, {**os.environ, **environment()}, files, None)


def forked(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that has imported torch and calls `work`."""
    _ensure_server()
    process = _context.Process(target=work, args=arguments)
    process.start()
    return process


def results_of_ranks(work: Callable[[int, int], Any], folder: Path) -> list[Any]:
    """What work(rank, 2) returns in each of two processes that are one group, of tensors, numbers
    and text."""
    in_ranks(_saved, work, str(folder))
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def _saved(rank: int, world: int, work: Callable[[int, int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    torch.save(work(rank, world), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


class Started:
    """A command that runs."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        prepare: Callable[[], None] | None = None,
        **more: str,
    ) -> None:
        """Args:
        prepare: called in the process before the command; a function of a module.
        more: variables of its environment.
        """
        _ensure_server()
        self.arguments = arguments
        self._output = Path(tempfile.mkdtemp())
        files = [str(self._output / name) for name in ("stdout", "stderr")]
        environ = {**environment(), **more}
        about = (arguments, str(cwd), environ, files, prepare)
        self._process = _context.Process(target=_child, args=about)
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess:
        """Exit code, stdout and stderr. Raises: TimeoutError if it runs on."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"{self.arguments}: runs for more than {timeout} s")
        texts = [(self._output / name).read_text() for name in ("stdout", "stderr")]
        shutil.rmtree(self._output)
        return subprocess.CompletedProcess(self.arguments, self._process.exitcode, *texts)


def _child(
    arguments: tuple[str, ...],
    cwd: str,
    environ: dict[str, str],
    files: list[str],
    prepare: Callable[[], None] | None,
) -> None:
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.path[:0] = environ["PYTHONPATH"].split(os.pathsep) if "PYTHONPATH" in environ else []
    sys.argv = [MAIN, *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a background job
    from selfsight import cli

    if prepare:
        prepare()
    cli.main()


class ForkedCell:
    """In place of `subprocess.Popen`, for the cells of a grid."""

    def __init__(self, command: list[str], *, stdout: Any, env: dict[str, str], **_: Any) -> None:
        _ensure_server()
        self._process = _context.Process(target=_cell, args=(command, env, stdout.name))
        self._process.start()

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()


def _cell(command: list[str], environ: dict[str, str], log: str) -> None:
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environ)
    os.environ.pop(PARENT, None)  # the grid, which is not the process that this one is forked from
    torch.set_num_threads(int(environ["OMP_NUM_THREADS"]))
    place = command.index("-m")
    sys.argv = command[place + 1 :]
    importlib.import_module(command[place + 1]).main()


def two_ranks(*arguments: str, cwd: Path, **more: str) -> list[subprocess.CompletedProcess]:
    """The outcome of a command in two processes that work together, as torchrun starts them."""
    return [process.wait() for process in start_ranks([arguments] * 2, [cwd] * 2, **more)]


def two_ranks_of(
    arguments: list[Sequence[str]], cwd: list[Path]
) -> list[subprocess.CompletedProcess]:
    """The same of processes that are started differently by mistake."""
    return [process.wait() for process in start_ranks(arguments, cwd)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_ranks(
    arguments: list[Sequence[str]],
    cwd: list[Path],
    prepare: Callable[[], None] | None = None,
    **more: str,
) -> list[Started]:
    """Two processes that work together, each with its arguments and its working directory."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        **more,
    }
    return [
        Started(*words, cwd=folder, prepare=prepare, **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, (words, folder) in enumerate(zip(arguments, cwd, strict=True))
    ]


def exits_of_ranks(
    worker: Callable[..., None], *arguments: Any, cwd: Path, without: int | None = None
) -> tuple[list[int | None], list[str]]:
    """Exit codes and stderr of worker(rank, *arguments) in two processes, which may join.

    Args:
        without: a rank that does not end by itself, and is killed when the other has.
    """
    _ensure_server()
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2"}
    ranks, files = [], [cwd / f"stderr{rank}" for rank in range(2)]
    for rank, file in enumerate(files):
        environ = {**environment(), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        args = (worker, rank, arguments, str(cwd), environ, str(file))
        ranks.append(_context.Process(target=_worker, args=args))
        ranks[-1].start()
    for rank, process in enumerate(ranks):
        process.join(0 if rank == without else 120)
    for process in ranks:
        if process.exitcode is None:
            process.kill()
            process.join()
    return [process.exitcode for process in ranks], [file.read_text() for file in files]


def _worker(
    worker: Callable[..., None],
    rank: int,
    arguments: tuple[Any, ...],
    cwd: str,
    environ: dict[str, str],
    file: str,
) -> None:
    os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    worker(rank, *arguments)
