"""The page of a grid: its tables, what a method costs, paired differences, what is unfinished."""

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from selfsight.report.legend import facts, label, legend, remarks
from selfsight.report.page.charts import embed
from selfsight.report.page.grid_charts import cost_chart, forest_chart, shown_p
from selfsight.report.page.grid_verdict import verdict
from selfsight.report.page.page import Page, write_page
from selfsight.report.page.panel import Panel, fragment, render
from selfsight.report.page.run import NAME
from selfsight.report.rows import COLUMNS, FLOORS, Row, pairs, points, rows
from selfsight.report.stored import Place, StoredGrid, place
from selfsight.report.table import by_data, columns_of

PAIRS = 300  # of rows that are listed

_LINKS = '{% for seed, link in links %}<a href="{{ link }}">{{ seed }}</a> {% endfor %}'
_SENTENCES = "{{ sentences[0] }}{% for said in sentences[1:] %}<br>{{ said }}{% endfor %}"
_LIST = "<ul>{% for line in lines %}<li>{{ line }}</li>{% endfor %}</ul>"


def write_grid_page(grid: StoredGrid, output: Path | None = None) -> Path:
    """Write the page of a grid.

    Args:
        output: the file (default: report.html in the grid's folder). An earlier report is replaced.
    Returns: the file.
    Raises: UserError if `output` is another file.
    """
    file = grid.folder / NAME if output is None else output
    write_page(grid_page(grid, file), file)
    return file


def grid_page(grid: StoredGrid, file: Path) -> Page:
    """The page, with links from where it will be to the reports of the grid's runs."""
    found = rows(grid.cells)
    groups = list(by_data(found))
    sentences = [verdict(group) for _, group in groups]
    if len(groups) > 1:
        sentences = [f"{data}: {said}" for (data, _), said in zip(groups, sentences, strict=True)]
    reports = reports_beside(grid, file)
    run = None if reports else _run_to_show(grid, found)
    return Page(
        title=str(grid.about.get("title") or grid.folder.absolute().name),
        kind="grid",
        facts=tuple(_facts(grid, found)),
        verdict=fragment(_SENTENCES, sentences=sentences or [verdict([])]),
        warnings=grid.notes,
        panels=tuple(grid_panels(grid, reports)),
        command=f"selfsight report {shlex.quote(str(run))}" if run else "",
        remedy="The tables link to the page of a run once there is one; write one with",
    )


def _run_to_show(grid: StoredGrid, found: list[Row]) -> Path | None:
    """The first run of the first row that is no baseline and has one."""
    cells = [cell for row in found if row.method not in FLOORS for cell in row.cells]
    return next((grid.runs[place(cell)] for cell in cells if place(cell) in grid.runs), None)


def _facts(grid: StoredGrid, found: list[Row]) -> Iterator[tuple[str, str]]:
    methods = {row.method for row in found} - set(FLOORS)
    seeds = sorted({cell.seed for cell in grid.cells})
    trained = [cell for cell in grid.cells if cell.method not in ("start", "pixels")]
    finished = sum(cell.error is None for cell in trained)
    yield "methods", str(len(methods))
    yield "data sets", str(len({row.data for row in found}))
    yield "seeds", ", ".join(map(str, seeds))
    yield "cells", f"{finished} of {len(trained)} finished"
    if grid.about.get("hardware"):
        yield "measured on", grid.about["hardware"]


def grid_panels(grid: StoredGrid, reports: Mapping[Place, str] | None = None) -> list[Panel]:
    """A panel for each data set, one of what is unfinished, one of all pairs, one of notes.

    Args:
        reports: the address of each cell's own report, relative to the page.
    """
    found, reports = rows(grid.cells), reports or {}
    groups = list(by_data(found))
    panels = [_data_panel(n, data, g, grid, reports) for n, (data, g) in enumerate(groups, 1)]
    unfinished = [f"{data}: {line}" for data, group in groups for line in remarks(group)]
    if unfinished:
        text = fragment(_LIST, lines=unfinished)
        note = "Rows that are not clearly better than a baseline, and cells without all results."
        panels.append(Panel("remarks", "Remarks", text, note))
    compared = [_pairs(data, group) for data, group in groups]
    compared = [table for table in compared if table]
    if compared:
        note = (
            "Student's t-test of the differences seed by seed; Holm's p is corrected over all "
            "pairs of rows of a data set. Two seeds or more are needed."
        )
        panels.append(Panel("pairs", "All pairs", Markup("").join(compared), note, folded=True))
    notes = fragment(_LIST, lines=legend(found, grid.about))
    panels.append(Panel("meaning", "What the numbers mean", notes))
    return panels


def reports_beside(grid: StoredGrid, page: Path) -> dict[Place, str]:
    """The addresses of the reports of a grid's runs, relative to the page, of those that exist."""
    start = page.absolute().parent
    return {
        at: quote(Path(os.path.relpath(run.absolute() / NAME, start)).as_posix())
        for at, run in grid.runs.items()
        if (run / NAME).is_file()
    }


def _data_panel(
    number: int, data: str, group: list[Row], grid: StoredGrid, reports: Mapping[Place, str]
) -> Panel:
    """The table and the charts of one data set."""
    name, parts = f"data-{number}", [_table(group, reports)]
    charts = [found for found in (cost_chart(group), forest_chart(group)) if found]
    if charts:
        figures, titles = zip(*charts, strict=True)
        parts.append(embed(name, figures, titles=titles))
    return Panel(name, data, Markup("").join(parts), facts(group, grid.about))


def _table(group: list[Row], reports: Mapping[Place, str]) -> Markup:
    titles, texts = zip(*columns_of(group), strict=True)
    lines = [list(line) for line in zip(*texts, strict=True)]
    links = [[(c.seed, reports[place(c)]) for c in r.cells if place(c) in reports] for r in group]
    if any(links):
        titles = (*titles, "reports by seed")
        for line, found in zip(lines, links, strict=True):
            line.append(fragment(_LINKS, links=found))
    kinds = ["best" if r.mark == "best" else "floor" if r.method in FLOORS else "" for r in group]
    shown = [{"texts": line, "kind": kind} for line, kind in zip(lines, kinds, strict=True)]
    return render("rows.html", titles=titles, rows=shown)


def _pairs(data: str, group: list[Row]) -> Markup:
    """All differences in the column that ranks; empty without a pair."""
    main = group[0].main
    found = pairs([row for row in group if row.values(main)], main) if main else []
    if not found:
        return Markup("")
    ordered = sorted(found, key=lambda pair: 1.0 if pair.holm is None else pair.holm)
    lines = [
        {
            "texts": (
                f"{label(pair.a, group)} - {label(pair.b, group)}",
                points(pair.difference),
                shown_p(pair.difference.p),
                shown_p(pair.holm),
            ),
            "kind": "",
        }
        for pair in ordered[:PAIRS]
    ]
    titles = (f"{data}, {COLUMNS[main]}", "difference", "paired p", "Holm's p")
    return render("rows.html", titles=titles, rows=lines)
