"""Commands that show what a run learned."""

from pathlib import Path
from typing import Annotated

import typer

from selfsight.cli.app import COMPARE, app


@app.command(rich_help_panel=COMPARE)
def report(
    where: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder")],
    keys: Annotated[
        list[str] | None,
        typer.Argument(help="key=value: data.path=... if the images were moved, device=cpu"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML file (default: RUN/report.html)")
    ] = None,
) -> None:
    """Write one offline HTML page: results, curves, a map of the images, neighbours, mistakes."""
    from selfsight.report.page.run import report as write

    print(f"Wrote {write(where, output, keys)}")
