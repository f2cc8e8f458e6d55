"""The files that groups, clusters and lists of images are written to.

A file that exists is replaced if the same command wrote it, which its first line says; another is
refused. In CSV, a cell that a spreadsheet would run as a formula is made harmless as in tables of
features: a path gets "./" before it, another text an apostrophe.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfsight.embeddings.cluster import Clustering
from selfsight.embeddings.csv_file import ENCODING, safe
from selfsight.embeddings.duplicates import Group, kept, training_rows
from selfsight.embeddings.table import Table
from selfsight.errors import UserError, some
from selfsight.files import write_atomically, write_json, write_text

GROUPS = ("group", "lowest", "different_labels", "leak", "row", "path", "split", "label")
CLUSTERS = ("path", "cluster", "similarity")
JSON = '{\n  "near_duplicates": {'
KEPT = "# The training images without near-duplicates, one of each group\n"
FILES = {"clusters.csv": ",".join(CLUSTERS), "clusters.json": '{\n  "method": '}  # how they begin
SHEET = re.compile(r"cluster-(noise|\d{4,})\.png")


def about(table: Table, row: int) -> dict[str, Any]:
    """What is known of an image: its row, path, split and label."""
    columns = {"path": table.paths, "split": table.splits, "label": table.labels}
    known = {name: column[row] for name, column in columns.items() if column is not None}
    return {"row": row, **known}


def check_output(path: Path | None, endings: tuple[str, ...], table: Path) -> None:
    """Raises: UserError for another ending, or for a file that something else wrote."""
    if path is None:
        return
    if path.suffix.lower() not in endings:
        raise UserError(f"'{path}': the name must end with {' or '.join(endings)}; rename it")
    starts = {".csv": ",".join(GROUPS), ".json": JSON, ".jsonl": KEPT}[path.suffix.lower()]
    if path.exists() and (path.samefile(table) or not _begins(path, starts)):
        raise UserError(f"'{path}': exists and is something else; give another name or remove it")


def _begins(path: Path, start: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(start.encode())) == start.encode()


def write_groups(path: Path, table: Table, groups: Sequence[Group], threshold: float) -> None:
    """Every group: .csv with a line for each image, or .json with an object for each group."""
    if path.suffix.lower() == ".csv":
        _write_csv(path, GROUPS, _group_lines(table, groups))
        return
    found = [
        {
            "different_labels": group.mixed,
            "lowest": round(group.lowest, 6),
            "images": [about(table, row) | {"leak": leak} for row, leak in _rows(group)],
        }
        for group in groups
    ]
    head = {"threshold": threshold, "images": len(table), "groups": len(groups)}
    write_json(path, {"near_duplicates": head, "groups": found})


def _group_lines(table: Table, groups: Sequence[Group]) -> Iterator[list[Any]]:
    for number, group in enumerate(groups):
        head = {"group": number, "lowest": f"{group.lowest:.6f}"}
        head["different_labels"] = int(group.mixed)
        for row, leak in _rows(group):
            cells = {**head, "leak": int(leak), **_cells(about(table, row))}
            yield [cells.get(name, "") for name in GROUPS]


def _write_csv(path: Path, titles: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Lines end with \\r\\n, so that a name that holds one of these is quoted."""

    def write(temporary: Path) -> None:
        with temporary.open("w", **ENCODING) as file:
            csv.writer(file).writerows([titles, *lines])

    write_atomically(path, write)


def _rows(group: Group) -> Iterator[tuple[int, bool]]:
    """The rows, and whether each is a leak."""
    leaks = np.isin(group.rows, group.leaks)
    return zip(group.rows.tolist(), leaks.tolist(), strict=True)


def _cells(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: safe(name, value) if isinstance(value, str) else value
        for name, value in values.items()
        if value is not None
    }


def check_kept(path: Path | None, table_file: Path, table: Table) -> None:
    """Before long work: a list of training images can be written there.

    Raises: UserError as `check_output`; as `training_rows`; if an image is no file, such as a row
        of a pack.
    """
    if path is None:
        return
    check_output(path, (".jsonl",), table_file)
    _image_files(table, np.flatnonzero(training_rows(len(table), table.splits)))


def _image_files(table: Table, rows: np.ndarray) -> list[Path]:
    files = [Path(table.paths[row]) for row in rows.tolist()]
    absent = [str(file) for file in files if not file.is_file()]
    if absent:
        raise UserError(
            f"--keep: lists image files, and {len(absent):,} of {len(files):,} training images "
            f"are none ({some(absent)}); leave it out, or make a table of files"
        )
    return files


def write_kept(path: Path, table: Table, groups: list[Group]) -> int:
    """The rows that `kept` gives as a list of image files for `data.path`: a JSON object on each
    line, with the absolute path and the label. Returns: their number."""
    rows = kept(groups, len(table), table.splits)
    lines = []
    for row, file in zip(rows.tolist(), _image_files(table, rows), strict=True):
        label = None if table.labels is None else table.labels[row]
        item = {"path": str(file.absolute())} | ({} if label is None else {"label": label})
        lines.append(json.dumps(item) + "\n")
    write_text(path, KEPT + "".join(lines))
    return len(lines)


def check_folder_of_clusters(folder: Path | None) -> None:
    """Raises: UserError for a file, or a folder that holds something else."""
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"'{folder}': is a file; give a new folder")
    there = list(folder.iterdir())
    own = [p for p in there if p.name in FILES and _begins(p, FILES[p.name])]
    # A sheet alone may be another's: it is one of a clustering only beside its table.
    sheets = [p for p in there if own and SHEET.fullmatch(p.name)]
    others = {p.name for p in there} - {p.name for p in own + sheets}
    if others:
        raise UserError(
            f"'{folder}': holds other files ({some(sorted(others))}); give a new folder"
        )


def write_clusters(folder: Path, table: Table, found: Clustering, made: dict[str, Any]) -> None:
    """clusters.csv, a line for each image in the order of the table, and clusters.json, a summary;
    sheets of an earlier clustering are removed.

    Args:
        made: how the clusters were made, for the summary.
    """
    for path in folder.iterdir() if folder.is_dir() else []:
        if SHEET.fullmatch(path.name):
            path.unlink()
    similarity = np.empty(len(table), np.float32)
    for cluster in found.clusters:
        similarity[cluster.rows] = cluster.similarities
    numbers = zip(table.paths, found.numbers.tolist(), similarity.tolist(), strict=True)
    lines = ([safe("path", path), n, f"{s:.6f}"] for path, n, s in numbers)
    _write_csv(folder / "clusters.csv", CLUSTERS, lines)
    clusters = [
        {"cluster": c.number, "images": len(c), "label": c.label, "purity": c.purity}
        for c in found.clusters
    ]
    agreement = {"purity": found.purity, "nmi": found.nmi, "ari": found.ari}
    write_json(folder / "clusters.json", {**made, **agreement, "clusters": clusters})


def sheet_name(number: int) -> str:
    """The name of the sheet of a cluster."""
    return "cluster-noise.png" if number < 0 else f"cluster-{number:04}.png"
