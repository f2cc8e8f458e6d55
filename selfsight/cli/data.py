"""Commands that look at images."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from selfsight.cli.app import DATA, Overrides, What, app
from selfsight.cli.files import composed
from selfsight.cli.images import ImageSource, data_config
from selfsight.cli.said import this_command
from selfsight.processes import Stopped


@app.command(rich_help_panel=DATA)
def views(
    what: What,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file")] = Path("views.png"),
    rows: Annotated[int, typer.Option(min=1, help="images")] = 8,
    epochs: Annotated[int, typer.Option(min=1, help="epochs, each with new views")] = 4,
) -> None:
    """Draw images and the views that a recipe makes of them."""
    from selfsight.report import sheet

    with composed(what, overrides) as found:
        sheet.draw_views(found.config, output, rows, epochs)
    print(f"Wrote {output}")


@app.command(rich_help_panel=DATA)
def pack(
    source: ImageSource,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder of the pack")],
    size: Annotated[
        int, typer.Option(min=1, help="the shorter side is at most this; of --raw both are")
    ] = 256,
    quality: Annotated[int, typer.Option(min=1, max=100, help="of JPEG")] = 90,
    raw: Annotated[bool, typer.Option(help="pixels of the central square, not JPEG")] = False,
) -> None:
    """Pack images for fast reading, both splits; the same command again continues."""
    from selfsight.data.pack import write as packing
    from selfsight.data.pack.read import read_description
    from selfsight.logging.log import Progress

    config = packing.PackConfig(raw=raw, size=size, quality=quality)
    try:
        with Progress() as progress:
            folders = packing.pack(data_config(source), config, output, progress.images)
    except Stopped as stop:
        print(f"Stopped; what is done is saved. Resume with: {this_command()}", file=sys.stderr)
        raise typer.Exit(128 + stop.number) from None
    for folder, new in folders:
        about = read_description(folder)
        words = f"{about['count']:,} images" + ("" if new else ", packed before")
        if about["bad_images"]:
            words += f"; {about['bad_images']:,} broken ones left out, see bad_images.txt"
        print(f"{folder}: {words}")
    print(f"Use them with data.path={output}")


@app.command(rich_help_panel=DATA)
def check(source: ImageSource) -> None:
    """Read every image: sizes, classes, broken files, duplicates, and what both splits share.

    Exit code 1 if anything is wrong.
    """
    from selfsight.data import check as checking
    from selfsight.logging.log import Progress
    from selfsight.report.console import print_check

    with Progress() as progress:
        report = checking.check(data_config(source), progress.images)
    print_check(report)
    if report.problems:
        raise typer.Exit(1)
