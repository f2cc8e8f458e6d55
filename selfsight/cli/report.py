"""Commands that show what a run learned."""

from pathlib import Path
from typing import Annotated

import typer

from selfsight.cli.app import COMPARE, app


@app.command(rich_help_panel=COMPARE)
def report(
    where: Annotated[Path, typer.Argument(metavar="FOLDER", help="of a run, or of a grid")],
    keys: Annotated[
        list[str] | None,
        typer.Argument(help="key=value: data.path=... if the images were moved, device=cpu"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file (default: FOLDER/report.html)"),
    ] = None,
) -> None:
    """Write one offline HTML page: of a run its results, curves, images and mistakes, of a grid its
    tables and differences."""
    from selfsight.front.report import write_report

    print(f"Wrote {write_report(where, output, keys)}")
