"""Commands that compare runs: grids of them, or a few."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from selfsight.cli.app import COMPARE, app
from selfsight.cli.said import this_command


@app.command(rich_help_panel=COMPARE)
def bench(
    grid: Annotated[
        str, typer.Argument(help="a shipped grid (see `selfsight grids`) or a YAML file")
    ],
    keys: Annotated[
        list[str] | None, typer.Argument(help="key=value of every pretraining: data.path=...")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder (default: runs/bench-GRID)")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="cells at a time (default: one a GPU, one a core)")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:1")] = "auto",
    compare: Annotated[
        tuple[str, str] | None, typer.Option(help="two rows to compare, seed by seed")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="of --compare (default: the one that ranks)")
    ] = None,
) -> None:
    """Run a grid of pretrainings and evaluations, what is missing of it, and print its table."""
    from selfsight.grid import bench as work
    from selfsight.grid.plan import read_grid
    from selfsight.report.console import console
    from selfsight.report.rows import compare_rows, rows
    from selfsight.report.table import to_rich, write_all

    config = read_grid(grid, keys)
    folder = output or Path(f"runs/bench-{Path(grid).stem}")
    say = partial(console(stderr=True).print, soft_wrap=True, markup=False)
    try:
        cells, about = work.bench(config, folder, jobs, device, say)
    except work.Interrupted as stop:
        print(f"Stopped; what is done is saved. Resume with: {this_command()}", file=sys.stderr)
        raise typer.Exit(128 + stop.signal_number) from None
    write_all(folder, cells, about)
    found = rows(cells)
    console().print(to_rich(found, about))
    if compare:
        line = compare_rows(cells, *compare, column or found[0].main or "")
        console().print(line, soft_wrap=True, markup=False)
    print(f"Wrote {folder}/table.md, table.csv, table.json")
    if any(cell.error for cell in cells):
        raise typer.Exit(1)


@app.command(rich_help_panel=COMPARE)
def compare(
    runs: Annotated[list[Path], typer.Argument(help="folders of two or more runs")],
) -> None:
    """Print what differs between runs, in configuration and in results."""
    from selfsight.report import compare as comparing
    from selfsight.report.console import console

    console().print(comparing.render(comparing.compare(runs)))
