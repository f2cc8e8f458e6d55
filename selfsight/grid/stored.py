"""What a grid's folder holds, also of a grid that still runs or was stopped."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsight import config as layers
from selfsight.errors import UserError
from selfsight.files import Damaged, read_json
from selfsight.grid.cell import NOTHING, is_outcome
from selfsight.grid.plan import Job, Protocol
from selfsight.report.rows import Cell
from selfsight.report.stored import TABLE, Place, StoredGrid, place, read_table

CELLS, JOB, OUTCOME = "cells", "job.json", "outcome.json"


def is_grid(folder: Path) -> bool:
    """Whether `selfsight bench` has written here.

    >>> is_grid(Path("nowhere"))
    False
    """
    return (folder / TABLE).is_file() or next(folder.glob(f"{CELLS}/*/{JOB}"), None) is not None


def read_stored(folder: Path) -> StoredGrid:
    """The cells of a grid's folder: those of its table, or of `cells/` where these are newer.

    Nothing is run or changed.
    Raises: UserError for a folder that holds no grid, or for a damaged table.
    """
    if not is_grid(folder):
        raise UserError(f"'{folder}': holds no grid; make one with: selfsight bench GRID -o FOLDER")
    found, notes = [], []
    for home in sorted(path.parent for path in folder.glob(f"{CELLS}/*/{JOB}")):
        try:
            found.append(_begun(home, notes))
        except Damaged as error:
            notes.append(f"A cell is left out: {error}.")
    runs = {b.place: b.home / "run" for b in found if (b.home / "run").is_dir()}
    table, newer = folder / TABLE, 0
    if table.is_file():
        cells, about = read_table(table)
        newer = sum(_is_newer(begun, cells, table) for begun in found)
        if not newer:
            return StoredGrid(folder, cells, about, runs, tuple(notes))
    latest = _latest(found)
    if len(latest) < len(found):
        notes.append(f"{len(found) - len(latest)} cells of earlier forms of the grid are left out.")
    notes.insert(0, _why_no_table(folder, newer))
    return StoredGrid(folder, *_together(latest), runs, tuple(notes))


@dataclass(frozen=True)
class _Begun:
    """A cell that was begun: its folder, what was asked for, its results so far."""

    home: Path
    job: Job
    outcome: dict[str, Any]
    cells: list[Cell]

    @property
    def place(self) -> Place:
        return self.job.data, self.job.method, self.job.backbone, self.job.seed


def _why_no_table(folder: Path, newer: int) -> str:
    if newer:
        return (
            f"{newer} cells have results that {TABLE} does not have yet, so the page shows all of "
            f"'{folder / CELLS}'. The `selfsight bench` command of the grid writes the table anew."
        )
    return (
        "The grid has not come to its end: the page shows the cells that were begun. The "
        "`selfsight bench` command that began it goes on."
    )


def _is_newer(begun: _Begun, cells: list[Cell], table: Path) -> bool:
    """Whether a cell has other results than the table, and later ones: a cell of an earlier form of
    the grid has others, too, and copied files may have any age."""
    known = {place(cell): _values(cell) for cell in cells}
    same = all(known.get(place(cell)) == _values(cell) for cell in begun.cells)
    file = begun.home / OUTCOME
    late = file.is_file() and file.stat().st_mtime_ns > table.stat().st_mtime_ns
    return late and not same


def _values(cell: Cell) -> dict[str, float]:
    return {name: value for name, value in cell.metrics.items() if value is not None}


def _latest(found: list[_Begun]) -> list[_Begun]:
    """Of cells for one data set, method, backbone and seed the one that was begun last."""
    ordered = sorted(found, key=lambda begun: (begun.home / JOB).stat().st_mtime_ns)
    return list({begun.place: begun for begun in ordered}.values())


def _together(found: list[_Begun]) -> tuple[list[Cell], dict[str, Any]]:
    """All cells, and test images and hardware for the notes."""
    cells: dict[Place, Cell] = {}
    images, devices = {}, set()
    for begun in found:
        for cell in begun.cells:
            cells.setdefault(place(cell), cell)  # pixels: those of one backbone
        outcome, cost = begun.outcome, begun.outcome["cost"]
        if type(outcome["test_images"]) is int and outcome["test_images"] > 0:
            images[begun.job.data] = outcome["test_images"]
        if {"device", "threads"} <= cost.keys():
            devices.add(f"{cost['device']}, {cost['threads']} threads a cell")
    return list(cells.values()), {"test_images": images, "hardware": "; ".join(sorted(devices))}


def _begun(home: Path, notes: list[str]) -> _Begun:
    """A cell as its folder has it. Raises: Damaged if it is not known what was asked for."""
    job, protocols = _job(home)
    try:
        outcome = _outcome(home)
        complete = all(key_of(protocol) in outcome["done"] for protocol in protocols)
        error = None if complete else _last_words(home)
        return _Begun(home, job, outcome, list(job_cells(job, outcome, protocols, error)))
    except Damaged as damaged:
        reason = str(damaged)
    except (KeyError, ValueError) as wrong:  # it measured what no cell has, or no accuracy
        reason = f"'{home / OUTCOME}' is damaged: {wrong}"
    notes.append(f"A cell counts as unfinished: {reason}.")
    return _Begun(home, job, NOTHING, list(job_cells(job, NOTHING, protocols, "damaged")))


def _job(home: Path) -> tuple[Job, list[Protocol]]:
    """What a cell was asked for. Raises: Damaged."""
    file = home / JOB
    tree = read_json(file)
    try:
        job = Job(**tree["job"])
        protocols = [layers.validate(Protocol, protocol) for protocol in tree["protocols"]]
        for protocol in protocols:
            protocol.columns()
    except (KeyError, TypeError, UserError) as error:
        raise Damaged(file, f"not a description of a cell ({error})") from None
    texts = (job.data, job.method, job.backbone)
    if not all(isinstance(text, str) for text in texts) or type(job.seed) is not int:
        raise Damaged(file, "not a description of a cell (a name is no text)")
    return job, protocols


def _outcome(home: Path) -> dict[str, Any]:
    """Raises: Damaged. A file that is not there is a cell without results."""
    try:
        value = read_json(home / OUTCOME)
    except FileNotFoundError:
        return NOTHING
    if not is_outcome(value):
        raise Damaged(home / OUTCOME, "it lacks what a cell's results have")
    return value


def _last_words(home: Path) -> str:
    """Why a cell is unfinished, as far as its log says it."""
    try:
        lines = (home / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    last = next((line for line in reversed(lines) if line.strip()), "")
    said = last.removeprefix("selfsight: ")
    return said[:500] if said != last else "not finished"


# Cells of a job -----------------------------------------------------------------------------------


def key_of(protocol: Protocol) -> str:
    """The name of a protocol among the results of a cell."""
    return json.dumps(protocol.model_dump(mode="json"), sort_keys=True)


def job_cells(
    job: Job,
    outcome: dict[str, Any],
    protocols: Sequence[Protocol],
    error: str | None,
) -> Iterator[Cell]:
    """The cells of one job for the table: the encoder's, and those of what it started from and of
    the pixels if it measured them."""
    metrics: dict[str, dict[str, float | None]] = {"encoder": {}, "start": {}, "pixels": {}}
    if outcome["online"] is not None:
        metrics["encoder"]["online"] = outcome["online"]
    for protocol in protocols:
        for evaluated, found in outcome["done"].get(key_of(protocol), {}).items():
            for metric, column in protocol.columns().items():
                metrics[evaluated][column] = found.get(metric)
    cost = outcome["cost"]
    seconds = cost.get("seconds")
    yield Cell(
        job.data,
        job.method,
        job.backbone,
        job.seed,
        metrics["encoder"],
        None if seconds is None else seconds / 60,
        cost.get("peak_memory_mib"),
        cost.get("images_per_second"),
        error,
    )
    nothing = (None, None, None)
    if metrics["start"]:
        yield Cell(job.data, "start", job.backbone, job.seed, metrics["start"], *nothing)
    if metrics["pixels"]:
        yield Cell(job.data, "pixels", "", job.seed, metrics["pixels"], *nothing)
