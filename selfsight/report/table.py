"""The results of a grid for a terminal, as Markdown, CSV and JSON; each says what its numbers mean.

`about` describes the grid. It is stored as it is; these keys are shown if present:
title (str), hardware (str, one line), versions ({package: version}), test_images ({data set: n}).
"""

import csv
import io
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.table import Table
from rich.text import Text

from selfsight.files import write_text
from selfsight.report.legend import facts, label, legend, measured, remarks
from selfsight.report.render import ABSENT, number, table
from selfsight.report.rows import COLUMNS, FLOORS, Cell, Pair, Row, compare_rows, pairs, rows
from selfsight.report.statistics import interval

__all__ = [
    "COLUMNS",
    "Cell",
    "Row",
    "compare_rows",
    "rows",
    "to_csv",
    "to_json",
    "to_markdown",
    "to_rich",
    "write_all",
]

IDENTITY = 3  # leading columns that a continued table repeats: method, n, mark
Column = tuple[str, list[str]]  # title, and the text of each row


@dataclass(frozen=True)
class _Tables:
    """Tables of the rows for a console; a table that is too wide is continued below."""

    found: list[Row]
    about: Mapping[str, Any]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        for data, group in by_data(self.found):
            yield Text(data, style="bold")
            for columns in _fitting(columns_of(group), width):
                yield _rich_table(columns, group)
                yield ""
            yield _wrapped([*remarks(group), facts(group, self.about), ""], width)
        yield _wrapped(legend(self.found, self.about), width)


def to_rich(found: list[Row], about: Mapping[str, Any] | None = None) -> ConsoleRenderable:
    """A table for each data set, as wide as the console, and below it the notes."""
    return _Tables(found, about or {})


def _rich_table(columns: list[Column], group: list[Row]) -> Table:
    titles, texts = zip(*columns, strict=True)
    styles = [
        "bold" if row.mark == "best" else "dim" if row.method in FLOORS else None for row in group
    ]
    rows = zip(*texts, strict=True)
    return table(titles, rows, box=box.SIMPLE_HEAD, right=True, styles=styles)


def _wrapped(lines: list[str], width: int) -> Text:
    """Not markup, so that brackets in a reason are shown."""
    return Text("\n".join(textwrap.fill(x, width, subsequent_indent="  ") for x in lines))


def to_markdown(found: list[Row], about: Mapping[str, Any] | None = None) -> str:
    """A section for each data set: the table, unfinished cells, notes."""
    about = about or {}
    lines = [f"# {_escaped(about.get('title', 'Results'))}", ""]
    for data, group in by_data(found):
        columns = columns_of(group)
        lines += [f"## {_escaped(data)}", "", _line(title for title, _ in columns)]
        lines.append("| " + " | ".join(["---", *["---:"] * (len(columns) - 1)]) + " |")
        lines += [_line(texts[i] for _, texts in columns) for i in range(len(group))]
        lines += ["", *(f"- {_escaped(remark)}" for remark in remarks(group))]
        lines += [*([""] if remarks(group) else []), _escaped(facts(group, about)), ""]
    lines += [f"- {_escaped(line)}" for line in legend(found, about)]
    return "\n".join(lines) + "\n"


def to_csv(cells: Iterable[Cell]) -> str:
    """One line for each cell with its unrounded values, from which all tables are computed."""
    found = rows(cells)
    columns = measured(found)
    fixed = ("minutes", "memory_mib", "images_per_second", "error")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["data", "method", "backbone", "seed", *columns, *fixed])
    for cell in (cell for row in found for cell in row.cells):
        values = [cell.metrics.get(c) for c in columns] + [getattr(cell, c) for c in fixed]
        writer.writerow([cell.data, cell.method, cell.backbone, cell.seed, *values])
    return file.getvalue()


def to_json(cells: Iterable[Cell], about: Mapping[str, Any] | None = None) -> str:
    """Everything: about, cells, rows, all paired comparisons, notes."""
    found = rows(cells)
    about = dict(about or {})
    comparisons, data_sets = [], {}
    for data, group in by_data(found):
        data_sets[data] = facts(group, about)
        for column in measured(group):
            comparisons += [_described_pair(pair) for pair in pairs(group, column)]
    document = {
        "about": about,
        "meaning": legend(found, about),
        "data_sets": data_sets,
        "cells": [asdict(cell) for row in found for cell in row.cells],
        "rows": [_described_row(row) for row in found],
        "comparisons": comparisons,
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def write_all(folder: Path, cells: Iterable[Cell], about: Mapping[str, Any]) -> None:
    """Write table.md, table.csv and table.json; each file is replaced in one step."""
    cells = list(cells)
    write_text(folder / "table.md", to_markdown(rows(cells), about))
    write_text(folder / "table.csv", to_csv(cells))
    write_text(folder / "table.json", to_json(cells, about))


# Columns ------------------------------------------------------------------------------------------


def by_data(found: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Each data set and its rows."""
    for data in dict.fromkeys(row.data for row in found):
        yield data, [row for row in found if row.data == data]


def columns_of(group: list[Row]) -> list[Column]:
    """Title and texts of every column that has a value; the first three say which row it is."""
    columns = [
        ("method", [label(row, group) + (" *" if row.notes else "") for row in group]),
        ("n", [_n(row) for row in group]),
        ("mark", [row.mark for row in group]),
    ]
    for column in measured(group):
        columns.append((COLUMNS[column], [_accuracy(row, column) for row in group]))
    costs = [
        ("minutes", [row.cost("minutes") for row in group], 1),
        ("MiB", [row.cost("memory_mib") for row in group], 0),
        ("images/s", [row.cost("images_per_second") for row in group], 0),
        ("pts/min", [row.points_per_minute for row in group], 2),
    ]
    for title, values, digits in costs:
        if any(value is not None for value in values):
            columns.append((title, ["-" if v is None else f"{v:.{digits}f}" for v in values]))
    return columns


def _n(row: Row) -> str:
    """'3' finished seeds, or '2/3' of all."""
    return f"{row.finished}/{len(row.cells)}" if row.failed else str(row.finished)


def _accuracy(row: Row, column: str) -> str:
    """'91.2 ± 0.4' in percent; with (n) behind it where it is not the row's n."""
    values = row.values(column)
    if not values:
        return ABSENT
    mean, half = interval(list(values.values()))
    text = number(mean, half)
    return text if len(values) == row.finished else f"{text} ({len(values)})"


def _fitting(columns: list[Column], most: int) -> Iterator[list[Column]]:
    """Split the columns into tables of at most `width` characters, each with the first columns."""
    identity, rest = columns[:IDENTITY], columns[IDENTITY:]
    start = sum(map(_width, identity))
    table, width = [], start
    for column in rest:
        if table and width + _width(column) > most:
            yield identity + table
            table, width = [], start
        table.append(column)
        width += _width(column)
    yield identity + table


def _width(column: Column) -> int:
    title, texts = column
    return 2 + max(map(cell_len, [title, *texts]))


def _line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(_escaped(text) for text in texts) + " |"


def _escaped(text: str) -> str:
    """Escape text for Markdown, on one line."""
    text = " ".join(text.split())
    for sign in "\\|*_<`[":
        text = text.replace(sign, "\\" + sign)
    return text


# JSON ---------------------------------------------------------------------------------------------


def _described_row(row: Row) -> dict[str, Any]:
    estimates = {}
    for column in measured([row]):
        values = row.values(column)
        mean, half = interval(list(values.values()))
        estimates[column] = {"mean": mean, "half": half, "n": len(values), "seeds": list(values)}
    return {
        "data": row.data,
        "method": row.method,
        "backbone": row.backbone,
        "n": row.finished,
        "failed": {str(seed): reason for seed, reason in row.failed.items()},
        "main": row.main,
        "mark": row.mark,
        "notes": list(row.notes),
        "accuracy": estimates,
        "minutes": row.cost("minutes"),
        "memory_mib": row.cost("memory_mib"),
        "images_per_second": row.cost("images_per_second"),
        "points_per_minute": row.points_per_minute,
    }


def _described_pair(pair: Pair) -> dict[str, Any]:
    return {
        "data": pair.a.data,
        "column": pair.column,
        "a": pair.a.name,
        "b": pair.b.name,
        **asdict(pair.difference),
        "p_holm": pair.holm,
        "pairs": pair.family,
    }
