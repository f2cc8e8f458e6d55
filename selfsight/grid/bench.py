"""Run the cells of a grid that have no result yet, on all devices; a failed cell stops no other."""

import contextvars
import functools
import os
import platform
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from selfsight import own
from selfsight.files import write_json
from selfsight.grid.cell import read_outcome
from selfsight.grid.plan import GridConfig, Job, first_label, plan
from selfsight.grid.stored import job_cells, key_of
from selfsight.locks import locked
from selfsight.processes import PARENT, Stopped
from selfsight.report.rows import Cell
from selfsight.train.folder import package_version

PACKAGES = ("selfsight", "torch", "timm", "scikit-learn")


class Interrupted(Exception):
    """A signal stopped the grid; finished cells are kept, unfinished ones saved a checkpoint."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def bench(
    grid: GridConfig,
    folder: Path,
    jobs: int | None = None,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> tuple[list[Cell], dict[str, Any]]:
    """Run the cells of a grid that have no result yet.

    Returns: all cells, each with its results or the reason why it has none; and the test images,
        hardware and versions for the table.

    Args:
        folder: of the grid; each cell has a folder below cells/, named after its configuration, so
            that a changed grid keeps the cells that it still contains.
        jobs: cells at a time (default: the grid's, else one a GPU or one a core).
        device: auto, cpu, cuda, or cuda:1 and its like.
        say: prints a line of progress.
    Raises: UserError before anything runs, for a grid with a mistake; Interrupted after a signal.
    """
    asked = plan(grid)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        missing = [job for job in asked if not finished(grid, job, folder)]
        say(f"{len(asked)} cells, {len(asked) - len(missing)} of them done -> {folder}")
        slots, threads = worker_devices(device, jobs or grid.jobs, len(missing))
        errors = _run(grid, missing, folder, slots, threads, say) if missing else {}
        cells = [cell for job in asked for cell in read_cells(grid, job, folder, errors)]
        return cells, _about(asked, folder)


def finished(grid: GridConfig, job: Job, folder: Path) -> bool:
    """Whether every protocol of the cell has its result."""
    done = read_outcome(folder / "cells" / job.folder)["done"]
    return all(key_of(protocol) in done for protocol in grid.protocols)


def _protocols(grid: GridConfig) -> list[dict[str, Any]]:
    return [protocol.model_dump(mode="json") for protocol in grid.protocols]


def worker_devices(device: str, jobs: int | None, cells: int) -> tuple[list[str], int]:
    """The devices of the cells that run at the same time, and the threads of each cell."""
    if device == "auto" and torch.cuda.is_available():
        devices = [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    else:
        devices = ["cpu" if device == "auto" else device]
    cores = os.cpu_count() or 1
    count = jobs or (cores if devices == ["cpu"] else len(devices))
    count = max(1, min(count, cells))
    return [devices[n % len(devices)] for n in range(count)], max(1, cores // count)


def _run(
    grid: GridConfig,
    missing: list[Job],
    folder: Path,
    slots: list[str],
    threads: int,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Run each cell in a process of its own. Returns: {cell folder: reason} of the failed cells."""
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)
    alive: set[subprocess.Popen] = set()
    errors: dict[str, str] = {}
    stop = threading.Event()
    context = contextvars.copy_context()  # threads do not know what code the user has named

    def one(job: Job) -> str | None:
        device = free.get()
        try:
            run = functools.partial(_cell, grid, job, folder, device, threads, alive)
            return None if stop.is_set() else context.copy().run(run)
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(slots)) as pool:
        try:
            futures = {pool.submit(one, job): job for job in missing}
            for number, future in enumerate(as_completed(futures), 1):
                job, error = futures[future], future.result()
                if error is not None:
                    errors[job.folder] = error
                text = error or _summary(grid, job, folder)
                say(f"[{number}/{len(missing)}] {job.title}: {text}")
        except (Stopped, KeyboardInterrupt) as stopped:  # KeyboardInterrupt: called from Python
            stop.set()
            for process in list(alive):
                process.terminate()  # it saves its state and ends
            raise Interrupted(getattr(stopped, "number", signal.SIGINT)) from None
    return errors


def _cell(
    grid: GridConfig,
    job: Job,
    folder: Path,
    device: str,
    threads: int,
    alive: set[subprocess.Popen],
) -> str | None:
    """Run one cell, with its output in log.txt. Returns: the reason if it failed, else None."""
    home = folder / "cells" / job.folder
    write_json(
        home / "job.json", {"job": vars(job), "device": device, "protocols": _protocols(grid)}
    )
    # -P: a file random.py in the current folder would replace Python's module
    command = [sys.executable, "-P", "-m", "selfsight.grid.cell", str(home), *own.named()]
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}  # the user's value has precedence
    environment[PARENT] = str(os.getpid())
    with (home / "log.txt").open("w", encoding="utf-8") as log:
        # in a session of its own: Ctrl-C then reaches it only through this process, as SIGTERM
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        alive.add(process)
        try:
            code = process.wait()
        finally:
            alive.discard(process)
    if code == 0:
        return None
    lines = (home / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"{last.removeprefix('selfsight: ') or f'exit code {code}'} (see {home / 'log.txt'})"


def _summary(grid: GridConfig, job: Job, folder: Path) -> str:
    """The accuracies and minutes of a finished cell, in one line."""
    cell = read_cells(grid, job, folder, {})[0]
    minutes = "" if cell.minutes is None else f"  {cell.minutes:.1f} min"
    values = [(name, value) for name, value in cell.metrics.items() if value is not None]
    return "  ".join(f"{name} {100 * value:.1f}" for name, value in values) + minutes


def read_cells(grid: GridConfig, job: Job, folder: Path, errors: dict[str, str]) -> list[Cell]:
    """The cells of one job for the table; of the pixels only once for all backbones."""
    error = errors.get(job.folder)
    if error is None and not finished(grid, job, folder):
        error = "not run yet"
    outcome = read_outcome(folder / "cells" / job.folder)
    cells = job_cells(job, outcome, grid.protocols, error)
    first = job.backbone == first_label(grid)
    return [cell for cell in cells if first or cell.method != "pixels"]


def _about(asked: list[Job], folder: Path) -> dict[str, Any]:
    """Test images, hardware and versions, for the notes below the table."""
    images, devices = {}, set()
    for job in asked:
        outcome = read_outcome(folder / "cells" / job.folder)
        if outcome["test_images"]:
            images[job.data] = outcome["test_images"]
        if outcome["cost"]:
            cost = outcome["cost"]
            devices.add(f"{cost['device']}, {cost['threads']} threads a cell")
    versions = {name: package_version(name) for name in PACKAGES}
    versions["python"] = platform.python_version()
    return {
        "test_images": images,
        "hardware": "; ".join(sorted(devices)),
        "versions": versions,
    }
